"""The rows of a new request, as they are inserted."""

import json
from dataclasses import asdict
from typing import Any

from serve_app.jobs.records import NewRequest
from serve_app.jobs.state_changes import WAITING
from serve_app.tasks import Status

# The length of the column `request_loras.path` (characters).
MAX_PATH = 500


def json_bytes(value: Any) -> int:
    """The size of a value (bytes) as the JSON that the database stores."""
    return len(json.dumps(value))


def row_bytes(new: NewRequest) -> int:
    """The size of a new request's rows (bytes), as `requests.row_bytes` counts it."""
    return sum(json_bytes(asdict(image.plan)) for image in new.images)


def request_row(new: NewRequest, now: float, predicted_s: float | None = None) -> dict[str, Any]:
    """The row of a new request. `now` is the database's time (s since the epoch), `predicted_s` what it will take."""
    return {
        "id": new.id,
        "tenant": new.tenant,
        "model": new.model,
        "priority": new.priority,
        "status": Status.IN_QUEUE,
        "version": 0,
        "notes": new.notes,
        "created_at": now,
        "deadline_at": now + new.deadline_s,
        "gpu_seconds": 0.0,
        "idempotency_key": new.idempotency_key,
        "body_sha256": new.body_sha256,
        "webhook": None if new.webhook is None else asdict(new.webhook),
        "purged": False,
        "traceparent": new.traceparent,
        "call_sha256": new.call_sha256,
        "predicted_s": predicted_s,
        "row_bytes": row_bytes(new),
    }


def image_rows(new: NewRequest, now: float, turn: int) -> list[dict[str, Any]]:
    """The rows of a new request's images, in prompt order; the first one gets `turn` in the queue."""
    return [
        {
            "request_id": new.id,
            "image_index": index,
            "editor_group": new.editor_group,
            "tenant": new.tenant,
            "priority": new.priority,
            "created_at": now,
            "plan": asdict(image.plan),
            "work": image.work,
            "status": Status.IN_QUEUE,
            "state": WAITING,
            "turn": turn + index,
            "reasons": [],
            "step": 0,
            "steps": image.plan.steps,
            "version": 0,
            "generation": 0,
        }
        for index, image in enumerate(new.images)
    ]


def lora_rows(new: NewRequest) -> list[dict[str, Any]]:
    """The rows that name the LoRAs of a new request, by which the history finds it. That of a tier is none of them."""
    paths = {use.path for image in new.images for use in image.plan.adapters if not use.of_tier}
    return [{"request_id": new.id, "path": path[:MAX_PATH]} for path in sorted(paths)]


def file_rows(new: NewRequest) -> list[dict[str, Any]]:
    """The rows of the files that a new request needs."""
    return [{"request_id": new.id, "key": key, "size_bytes": size} for key, size in new.files.items()]
