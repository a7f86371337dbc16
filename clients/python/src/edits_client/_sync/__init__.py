# Generated from ../_async by `python -m tools.client_code`: change that file.
"""The sync client. `_sync` is generated from this folder: `python clients/python/generate.py`."""
