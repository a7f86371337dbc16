"""The client's end of the call to an editor, in the ingress processes. It imports no torch."""

from collections.abc import AsyncGenerator, Mapping

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import EditError, EditorLost, EditorUnavailable, ServiceError
from serve_app.replicas.routing_stats import adapter_set_id
from serve_app.tasks import EditEvent, EditTask


class EditorHandles:
    """Serve's handles of the editors, by group. Translates every error of Ray into an error of this service."""

    def __init__(self, handles: Mapping[str, DeploymentHandle]) -> None:
        # A handle starts to look for the replicas when it gets its first options: so here, before the first request.
        self._handles = {group: handle.options(stream=True) for group, handle in handles.items()}

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        """The events of one edit. Closing the generator cancels the edit.

        Raises what the editor raised, EditError for an error that is not this service's, EditorUnavailable if no
        editor took the edit, and EditorLost if its process or node died.
        """
        handle = self._handles[task.plan.editor_group].options(multiplexed_model_id=adapter_set_id(task.plan.adapters))
        response = handle.edit.remote(task)
        try:
            async for event in response:
                yield event
        except RayTaskError as error:
            # Its text is the remote traceback, with colour codes; the cause is the error itself.
            cause = error.cause
            if isinstance(cause, ServiceError):
                raise cause from None
            raise EditError("the editor failed to make the image; its log says why") from error
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise EditorUnavailable("no editor could be reached") from error
        except RayError as error:
            # The replica or its node died, or the system killed it for its memory use. The edit may have caused it,
            # so this counts as an attempt.
            raise EditorLost("the editor that worked on the image died") from error
        finally:
            response.cancel()
