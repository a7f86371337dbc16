"""Finds the folder of the config file of `serve run`. Ray passes only the args to an application builder."""

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
    """The folder of the config file, if the `serve run` of this job runs on this machine; otherwise None.

    It is read from the arguments of the command's process. Ray's own record joins the arguments with spaces, so they
    cannot be separated again.
    """
    try:
        context = ray.get_runtime_context()
        # The address of this cluster: a machine may run several.
        jobs = list_jobs(address=context.gcs_address, filters=[("job_id", "=", context.get_job_id())])
    except (RayStateApiException, ConnectionError):
        return None
    drivers = [job.driver_info for job in jobs if job.driver_info is not None]
    here = ray.util.get_node_ip_address()
    return next((_folder_of(driver) for driver in drivers if driver.node_ip_address == here), None)


def _folder_of(driver: Any) -> Path | None:
    try:
        process = psutil.Process(int(driver.pid))
        arguments, folder = process.cmdline(), Path(process.cwd())
    except psutil.Error:
        return None
    file = config_file_of(arguments)
    return (folder / file).parent.resolve() if file and (folder / file).is_file() else None


def config_file_of(command_line: Sequence[str]) -> str | None:
    """The config file that the command line `... serve run ... FILE` names; None for any other command line."""
    if "run" not in command_line:
        return None
    arguments = list(command_line[command_line.index("run") + 1 :])
    try:
        context = serve_run.make_context("run", arguments, resilient_parsing=True)
    except click.ClickException:
        return None
    file = context.params.get("config_or_import_path")
    return str(file) if file else None
