"""What every test shares. The folder says what a test needs: unit (nothing), browser (Chromium), engine (torch),
service (Ray), cluster (nothing: it checks the files of cluster/). The Python client's own tests, in clients/python,
need nothing."""

import base64
import gc
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest
from xdist.scheduler import LoadScopeScheduling

from serve_app.commands.main import app
from serve_app.tasks import EditPlan
from tests.postgres import PostgresServer

if TYPE_CHECKING:
    from serve_app.engine.torch_engine import TorchEngine

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray gives its processes a niceness of 15: next to other tests they would get no turn.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so is its name
# No processes that compile next to the one of the test: each of them imports torch first.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
# Otherwise, torch compiles a program for each of the CPU's instruction sets, to see whether the compiler knows it.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"

ROOT = Path(__file__).parent.parent
# Random weights that fit the miniature of random weights, `my_lora_job/my_lora.safetensors`.
LORAS = ROOT / "tests/loras"

# Of torch, in each process. What is computed here is small, and a run has several processes. The number decides the
# last bits, so that both sides of a comparison have the same.
THREADS = 1
# Room for two of the tests' adapters, not for three.
ADAPTER_CACHE_BYTES = 60_000


# In the order in which they are run: what takes longest is first, so that the processes of a run finish together.
FOLDERS = ("service", "commands", "engine", "cluster", "browser", "unit", "client")
# Of the files of a folder too; those that are not named follow.
LONG_FILES = ("test_parity.py", "test_trained.py", "test_goldens.py", "test_compiled.py")
# The tests of `service` share a Ray. These start another one each, and stay together too.
WITH_OWN_RAY = ("tests/service/test_two_cores.py", "tests/commands/test_run.py")


class Scheduling(LoadScopeScheduling):
    """Hands out tests to the processes of a run: those of a file together, and those of a Ray."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(WITH_OWN_RAY):
            return "a Ray of its own"
        if nodeid.startswith("tests/service/"):
            return "the shared Ray"
        return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(folder_of(item))
    items.sort(key=order_of)


def order_of(item: pytest.Item) -> tuple[int, int]:
    file = item.path.name
    return FOLDERS.index(folder_of(item)), LONG_FILES.index(file) if file in LONG_FILES else len(LONG_FILES)


def folder_of(item: pytest.Item) -> str:
    """The folder of a test; the Python client has its own outside of this one."""
    return "client" if item.path.is_relative_to(ROOT / "clients") else item.path.parent.name


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what was imported out of each later run of the garbage collector: it is most of all objects.

    It runs more rarely than by default, because it finds little in a test.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    # Until all tests are imported: the garbage collector would search again and again for what imports have left. The
    # controller of xdist imports none.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()
    config.addinivalue_line("markers", "unit: needs neither torch nor Ray")
    config.addinivalue_line("markers", "shares_an_application: its tests use one running application, one by one")
    config.addinivalue_line("markers", "browser: opens the playground in Chromium, over stand-in editors")
    config.addinivalue_line("markers", "cluster: checks what is deployed, and every serve config")
    config.addinivalue_line("markers", "commands: runs edits-server and its front in processes of their own")
    config.addinivalue_line("markers", "engine: runs the real diffusers classes in this process")
    config.addinivalue_line("markers", "client: the Python client without a service")
    config.addinivalue_line("markers", "service: runs a real Ray Serve application")


def edits_server(*arguments: object) -> int | str | None:
    """Run the command in this process, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments], prog_name="edits-server")
    return ended.value.code


def noise_image(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """An image with structure at many scales, the same for the same arguments."""
    random = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    fine = PIL.Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return PIL.Image.blend(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC), fine, 0.2)


def as_png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="session")
def control_png() -> bytes:
    return as_png(noise_image(96, 64))


@pytest.fixture(scope="session")
def make_body(control_png: bytes) -> Callable[..., dict]:
    """A valid body: `make_body(width=64)` sets a field of its only prompt, `loras=[...]` one of the body."""

    def make(**fields: object) -> dict:
        top = {"model", "loras", "prompts", "trigger_word", "hf_token", "output_format", "profile", "exif"}
        top |= {"preset", "quality", "max_loss"}
        prompt = {"prompt": "[trigger] at night", "ctrl_img": as_base64(control_png), "width": 64, "height": 64}
        prompt |= {"sample_steps": 2} | {k: v for k, v in fields.items() if k not in top}
        body = {"model": "qwen_image_edit", "prompts": [prompt], "loras": [{"path": "job/lora.safetensors"}]}
        return body | {k: v for k, v in fields.items() if k in top}

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL server of this run: `postgres.new_database()` is the URL of an empty database."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def engine() -> "TorchEngine":
    """The miniature of random weights, as an editor loads it."""
    # Unit tests run without torch.
    from serve_app.config import MINIATURE_RANDOM, ModelConfig
    from serve_app.engine.torch_engine import TorchEngine

    return TorchEngine.load(
        ModelConfig(checkpoint=MINIATURE_RANDOM, threads=THREADS, device="cpu", adapter_cache_bytes=ADAPTER_CACHE_BYTES)
    )


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., EditPlan]:
    def make(**changes: object) -> EditPlan:
        values = {
            "model": "qwen_image_edit",
            "profile": "reference",
            "prompt": "make it night",
            "negative_prompt": "",
            "width": 96,
            "height": 64,
            "steps": 2,
            "guidance_scale": 4.0,
            "seed": 42,
            "output_format": "png",
            "control_images": ("0" * 64,),
        }
        return EditPlan(**(values | changes))

    return make
