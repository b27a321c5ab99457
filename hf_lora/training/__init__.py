"""What a training loop needs: readiness, parameter groups, a reference, metrics, searches, trackers."""
