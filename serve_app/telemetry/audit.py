"""The audit log: who did what, one line of JSON each, from the logger `serve_app.audit`.

It never has a prompt, a key or another secret: callers are named by their tenant and the beginning of their key's hash.
"""

import json
import logging
from datetime import UTC, datetime

logger = logging.getLogger("serve_app.audit")
# Whatever `log_level` says about the rest of the service.
logger.setLevel(logging.INFO)


def record(action: str, *, tenant: str | None, key: str, target: str, outcome: str, **facts: object) -> None:
    """Write one line. `tenant` is None for operators, and `key` the beginning of the hash of a key, empty without."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "who": {"tenant": tenant, "key": key},
        "action": action,
        "target": target,
        "outcome": outcome,
    }
    logger.info("%s", json.dumps(line | facts))
