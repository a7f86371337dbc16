"""Reads bodies with the models that datamodel-code-generator makes: `python read.py MODELS RESULTS`.

MODELS is the folder of the generated module `edit_models`, RESULTS a file with a list of results. Prints as JSON which
types it found.
"""

import json
import sys
from pathlib import Path

models, results = sys.argv[1:]
sys.path.insert(0, models)

import edit_models  # noqa: E402 - generated

read = [edit_models.RequestResult.model_validate(result) for result in json.loads(Path(results).read_text())]
types = {
    "status": {type(result.status).__name__ for result in read},
    "created_at": {type(result.created_at).__name__ for result in read},
    "metadata": {type(result.metadata).__name__ for result in read},
    "effective": {type(record).__name__ for result in read for record in result.metadata.effective},
    "scheduler": {type(record.scheduler).__name__ for result in read for record in result.metadata.effective},
}
sys.stdout.write(json.dumps({name: sorted(kinds) for name, kinds in types.items()}))
