# Generated from ../_async by clients/python/generate.py: change that file.
"""The async client. `_sync` is generated from this folder: `python clients/python/generate.py`."""
