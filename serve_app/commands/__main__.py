"""`python -m serve_app.commands` is `edits-server`, where the package is not installed."""

from serve_app.commands.main import app

app(prog_name="edits-server")
