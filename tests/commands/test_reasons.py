"""The sentence about a failed or waiting deployment."""

from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from serve_app.commands.run import not_running, reason_of

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
\x1b[36mray::Editor.__init__()\x1b[39m (pid=1)
  File "editor.py", line 1, in __init__
    raise CheckpointRefused("no")
serve_app.errors.CheckpointRefused: the checkpoint is not the model's
"""


def application(message: str, **deployments: DeploymentStatusOverview) -> ApplicationStatusOverview:
    return ApplicationStatusOverview(
        status=ApplicationStatus.DEPLOY_FAILED, message=message, last_deployed_time_s=0, deployments=deployments
    )


def deployment(message: str = "", **states: int) -> DeploymentStatusOverview:
    return DeploymentStatusOverview(
        status=DeploymentStatus.UPDATING,
        status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
        replica_states=states,
        message=message,
    )


def test_the_reason_is_the_last_errors_text():
    assert reason_of(application(TRACEBACK)) == "the checkpoint is not the model's"
    assert reason_of(application("", Editor=deployment(TRACEBACK))) == "the checkpoint is not the model's"


def test_without_an_error_the_reason_is_serves_message():
    assert reason_of(application("the application\nis gone")) == "the application is gone"


def test_deployments_without_a_running_replica_are_named_with_the_reason():
    running, waiting = deployment(RUNNING=1), deployment("no CPU is free")
    assert not_running(application("", A=running, B=waiting, C=deployment())) == "B (no CPU is free), C (updating)"
    assert not_running(application("")) == not_running(None) == "the application to be built"
