"""A sweep that is hit in the middle: an editor is killed, then the whole cluster, which is started again."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.drill.load import Client, control_image, digest
from benchmarks.drill.notes import FRESH_S, SWEEP, Note, cell_name
from benchmarks.drill.service import MODEL, DrillFailed, Service
from benchmarks.drill.verdict import times_made

MULTIPLIERS = [round(0.25 + 0.05 * number, 2) for number in range(12)]
PROMPTS = ["night", "day"]
SEEDS = [1, 2]
CELLS = len(MULTIPLIERS) * len(PROMPTS) * len(SEEDS)
STEPS = 10
LORA = "my_lora_job/my_lora.safetensors"
# How many cells are finished when the editor, and when everything, is killed.
BEFORE_EDITOR, BEFORE_CLUSTER = 10, 20
# How many cells are compared with the same request sent alone.
COMPARED = 4
PATIENCE_S = 120.0


class SweepDrill:
    """`run` it on an idle service: it prints what happened and returns the problems."""

    def __init__(self, service: Service, client: Client) -> None:
        self._service = service
        self._client = client

    async def run(self) -> list[str]:
        """Raises DrillFailed if nothing was at work when it was to be killed."""
        prompt = {"prompt": PROMPTS[0], "neg": SWEEP, "ctrl_img": control_image(), "width": 64, "height": 64}
        prompt |= {"sample_steps": STEPS, "guidance_scale": 1}
        base = {"model": MODEL, "loras": [{"path": LORA}], "prompts": [prompt]}
        axes = {"multipliers": MULTIPLIERS, "prompts": PROMPTS, "seeds": SEEDS}
        began = time.time()
        answer = await self._client.ask("POST", "/v1/sweeps", json={"base": base, "axes": axes})
        sweep_id = answer.raise_for_status().json()["sweep_id"]
        done: list[tuple[float, set[str]]] = []
        before = await self._until(sweep_id, BEFORE_EDITOR)
        done.append((time.time(), names_of(before)))
        await self._kill_editor()
        before = await self._until(sweep_id, BEFORE_CLUSTER)
        done.append((time.time(), names_of(before)))
        killed = self._service.kill_cluster()
        print(
            f"killed an editor, and then all {killed} processes when {len(done[-1][1])} of {CELLS} cells were finished"
        )
        await self._service.start()
        shown = await self._until(sweep_id, CELLS)
        print(f"the sweep was {shown['status']} after {time.time() - began:.0f} s")
        notes = self._service.notes.of_image()
        made = times_made([name for name in notes if name.startswith(SWEEP)], notes)
        print(f"edits that an editor finished, by cell: {dict(sorted(made.items()))} (times made: cells)")
        return [*faults(before, shown, done, notes), *await self._unlike_alone(shown, base)]

    async def _until(self, sweep_id: str, finished: int) -> dict[str, Any]:
        """The sweep once so many cells have succeeded, or it has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            shown = (await self._client.ask("GET", f"/v1/sweeps/{sweep_id}")).raise_for_status().json()
            if shown["counts"]["succeeded"] >= finished or shown["status"] in ("failed", "canceled"):
                return shown
            await asyncio.sleep(0.1)
        raise DrillFailed(f"after {PATIENCE_S:.0f} s only {shown['counts']} of the sweep")

    async def _kill_editor(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for note in self._service.notes.latest().values():
                is_fresh = note.at > time.time() - FRESH_S
                if note.what == "step" and note.step < note.steps and is_fresh and self._service.owns(note.pid):
                    self._service.kill(note.pid)
                    return
            await asyncio.sleep(0.005)
        raise DrillFailed("no editor was seen at work on the sweep")

    async def _unlike_alone(self, shown: dict[str, Any], base: dict[str, Any]) -> list[str]:
        """Cells that differ from the same request sent alone."""
        problems = []
        for cell in shown["grid"][:: CELLS // COMPARED]:
            place = cell["place"]
            prompt = base["prompts"][0] | {"prompt": PROMPTS[place["prompt"]], "seed": SEEDS[place["seed"]]}
            loras = [{"path": LORA, "network_multiplier": MULTIPLIERS[place["multiplier"]]}]
            body = base | {"prompts": [prompt], "loras": loras, "output_format": "png"}
            answer = await self._client.ask("POST", "/v1/inference", json=body)
            request_id = answer.raise_for_status().json()["request_id"]
            await self._client.wait(request_id)
            images = [
                (await self._client.ask("GET", f"/v1/requests/{each}/images/0")).raise_for_status().content
                for each in (cell["request_id"], request_id)
            ]
            if digest(images[0]) != digest(images[1]):
                problems.append(f"cell {cell['cell']} is not the image of the same request sent alone")
        return problems


def names_of(shown: Mapping[str, Any]) -> set[str]:
    """The names of the finished cells, as engines note them."""
    return {
        cell_name(PROMPTS[place["prompt"]], SEEDS[place["seed"]], MULTIPLIERS[place["multiplier"]])
        for cell in shown["grid"]
        if cell["status"] == "succeeded" and (place := cell["place"])
    }


def faults(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    done: Sequence[tuple[float, set[str]]],
    notes: Mapping[str, Sequence[Note]],
) -> list[str]:
    """What is wrong with a sweep that was hit, one sentence each. `done` are the finished cells before each kill."""
    problems = []
    if after["status"] != "succeeded" or after["counts"]["succeeded"] != CELLS:
        problems.append(f"the sweep is {after['status']}: {after['counts']}")
    ids = [cell["request_id"] for cell in after["grid"]]
    if len(set(ids)) != CELLS:
        problems.append(f"{CELLS} cells have {len(set(ids))} requests")
    known = {cell["cell"]: cell["request_id"] for cell in before["grid"] if cell["request_id"]}
    if any(ids[number] != request_id for number, request_id in known.items()):
        problems.append("a cell became another request")
    for at, names in done:
        again = sorted(name for name in names if any(note.at > at for note in notes.get(name, ())))
        problems += [f"{name} was finished and was worked on again" for name in again]
    return problems
