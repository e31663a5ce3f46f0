"""Webdataset shards: written by preparing and encoding, read whole or streamed."""
