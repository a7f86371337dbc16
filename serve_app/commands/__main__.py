"""`python -m serve_app.commands` is `edits-server` for a package that is not installed."""

from serve_app.commands.main import app

app(prog_name="edits-server")
