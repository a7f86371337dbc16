"""The async client. `_sync` is generated from this folder: `python clients/python/generate.py`."""
