"""Where Ray Serve listens for HTTP. Ray passes only the args to an application builder."""

from ray import serve


def http_host() -> str | None:
    """The address that Serve's HTTP proxy listens on: behind the front of `edits-server run`, loopback.

    None if no Serve runs on this cluster, or if it answers no HTTP. Blocks: asks Serve's controller.
    """
    client = serve.context._get_global_client(raise_if_no_controller_running=False)
    host = client.http_config.host if client else None
    return None if host is None else str(host)
