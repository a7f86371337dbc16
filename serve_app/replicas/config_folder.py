"""The folder of the config file that `serve run` was given. Ray hands a builder the args alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import psutil
import ray
from ray.serve.scripts import run as serve_run
from ray.util.state import list_jobs
from ray.util.state.exception import RayStateApiException


def config_folder() -> Path | None:
    """The folder, if the `serve run` that this job belongs to runs on this machine; otherwise None.

    The command's process has the words as they were typed. Ray's own record of the command line joins them with
    spaces, so that they cannot be told apart again.
    """
    try:
        context = ray.get_runtime_context()
        # Of this very cluster: a machine may run several.
        jobs = list_jobs(address=context.gcs_address, filters=[("job_id", "=", context.get_job_id())])
    except (RayStateApiException, ConnectionError):
        return None
    drivers = [job.driver_info for job in jobs if job.driver_info is not None]
    here = ray.util.get_node_ip_address()
    return next((_folder_of(driver) for driver in drivers if driver.node_ip_address == here), None)


def _folder_of(driver: Any) -> Path | None:
    try:
        process = psutil.Process(int(driver.pid))
        words, folder = process.cmdline(), Path(process.cwd())
    except psutil.Error:
        return None
    file = config_file_of(words)
    return (folder / file).parent.resolve() if file and (folder / file).is_file() else None


def config_file_of(words: Sequence[str]) -> str | None:
    """What the command line `... serve run ... FILE` names as its config file; None for any other command line."""
    if "run" not in words:
        return None
    arguments = list(words[words.index("run") + 1 :])
    try:
        context = serve_run.make_context("run", arguments, resilient_parsing=True)
    except click.ClickException:
        return None
    file = context.params.get("config_or_import_path")
    return str(file) if file else None
