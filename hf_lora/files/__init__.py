"""Bytes on disk and on the Hub, read and written safely; nothing here knows what an adapter means."""
