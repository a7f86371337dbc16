"""The way operators deploy: mistakes of a declared config are named. `test_fleet.py` has one without mistakes."""

import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.app import build_application
from serve_app.config import AppConfig
from tests.conftest import ROOT
from tests.service.conftest import declare


def test_unknown_key_fails_the_deploy_and_is_named(cluster):
    application = {"name": "declared", "route_prefix": "/declared", "import_path": "serve_app.app:build"}
    status = declare(application | {"args": {"lora_rot": "x"}})
    assert status.status == "DEPLOY_FAILED"
    assert "lora_rot" in status.message
    serve.delete("declared")


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match="there is no model 'flux'"):
        build_application(AppConfig.model_validate({"models": [{"id": "flux"}]}))


def test_shipped_config_is_what_serve_takes():
    shipped = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve_config.yaml").read_text()))
    assert (shipped.http_options.host, shipped.http_options.port) == ("127.0.0.1", 8000)
    [application] = shipped.applications
    assert (application.name, application.route_prefix) == ("edits", "/")
