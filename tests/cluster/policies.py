"""Checks the overlay `production` and the Job for weights with checkov: `python -m tests.cluster.policies CHECKOV`.

CHECKOV is the program, installed in an environment of its own: `pip install checkov`. It does not know a RayService, so
its pods are checked as pods. Done by hand, because checkov brings 100 packages.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import yaml

from tests.cluster.manifests import KUBERAY, Manifest, build, only, pod_templates

# Answered in docs/cluster.md.
ANSWERED = {"CKV_K8S_15", "CKV_K8S_35", "CKV_K8S_38", "CKV_K8S_40", "CKV_K8S_43"}


def plain(manifests: list[Manifest]) -> list[Manifest]:
    """The manifests with the pods of the RayService instead of it, all in a namespace."""
    found = [manifest for manifest in manifests if manifest["kind"] != "RayService"]
    for template in pod_templates(only(manifests, "RayService")):
        name = {"name": template["metadata"]["labels"]["app.kubernetes.io/component"]}
        found.append({"apiVersion": "v1", "kind": "Pod", **template, "metadata": template["metadata"] | name})
    found += build(KUBERAY / "weights")
    return [manifest | {"metadata": manifest["metadata"] | {"namespace": "edits"}} for manifest in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkov")
    program = parser.parse_args().checkov
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "all.yaml"
        file.write_text(yaml.safe_dump_all(plain(build(KUBERAY / "overlays/production"))))
        command = [program, "--framework", "kubernetes", "--file", file, "--skip-download", "--output", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    failed = Counter((check["check_id"], check["check_name"]) for check in report["results"]["failed_checks"])
    sys.stdout.write(f"{report['summary']['passed']} passed, {report['summary']['failed']} failed\n")
    for (check, name), count in sorted(failed.items()):
        sys.stdout.write(f"{check} ({name}): {count}, {'answered' if check in ANSWERED else 'NOT ANSWERED'}\n")
    return int(any(check not in ANSWERED for check, _ in failed))


if __name__ == "__main__":
    sys.exit(main())
