"""The files of launch/: their syntax, their schemas, and the one command in which they end."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LAUNCH = ROOT / "launch"
SHELL = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *(ROOT / "tests/cluster").glob("*.sh")]
YAML = {"gke_jobset.yaml": "jobset_schema.json", "skypilot.yaml": "skypilot_schema.json"}


@pytest.mark.parametrize("path", SHELL, ids=lambda p: p.name)
def test_shell_scripts_are_clean(path):
    said = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    if shutil.which("shellcheck"):
        said = subprocess.run(
            ["shellcheck", str(path)], capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("name", YAML)
def test_yaml_fits_its_schema_and_a_misspelt_field_would_not(name):
    schema = json.loads((HERE / YAML[name]).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    text = (LAUNCH / name).read_text()
    jsonschema.validate(yaml.safe_load(text), schema)
    for right, wrong in (("maxRestarts", "maxRestart"), ("recover_on_exit_codes", "recover_on")):
        if right in text:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(yaml.safe_load(text.replace(right, wrong)), schema)


def test_a_pod_hears_signals_itself_and_asks_for_as_many_as_its_hosts():
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert container["command"][:2] == ["streamjax", "train"]
    assert "--stopped-exit=75" in container["command"]
    assert spec["parallelism"] == spec["completions"]
    # What ends the run for good names this container, and never the code of a stopped run.
    rule = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == container["name"] and 75 not in rule["values"]


def test_skypilot_names_the_processes_as_streamjax_reads_them(tmp_path):
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").touch()
    streamjax = tmp_path / "streamjax"
    streamjax.write_text('#!/bin/sh\nenv | grep ^JAX_ | sort\nprintf "<%s>" "$@"\n')
    streamjax.chmod(0o755)
    run = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"]
    env = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "RECIPE": "toy",
        "OVERRIDES": "steps=3 seed=1", "NAME": "mine", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
    }  # fmt: skip
    said = subprocess.run(["bash", "-c", run], env=env, capture_output=True, text=True, check=True)
    assert said.stdout == (
        "JAX_COORDINATOR_ADDRESS=10.0.0.1:8476\nJAX_NUM_PROCESSES=2\nJAX_PROCESS_ID=1\n"
        "<train><toy><steps=3><seed=1><--run></runs/mine><--stopped-exit><75>"
    )


def test_tpu_vm_quotes_what_it_sends_to_the_hosts(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\nfor last; do :; done\nprintf "%s" "$last"\n')
    gcloud.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TPU": "pod", "ZONE": "here"}
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), "toy", "base=a b;c", "--run", "/runs/x"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    remote = said.removeprefix("--command=")
    assert remote.startswith("exec env JAX_NUM_PROCESSES=auto ~/venv/bin/streamjax train toy ")
    echoed = subprocess.run(
        ["bash", "-c", "printf '<%s>' " + remote.partition("train ")[2]],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert echoed == "<toy><base=a b;c><--run></runs/x>"
    bare = subprocess.run(["bash", str(LAUNCH / "tpu_vm.sh")], capture_output=True, check=False)
    assert bare.returncode == 2


def test_every_file_ends_in_the_same_command_and_stands_in_the_table():
    table = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        if path.suffix in (".md", "") or path.name.startswith("."):
            continue
        text = path.read_text()
        header = ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else text
        assert f"[`{path.name}`]({path.name})" in table
        assert "streamjax train" in header and "Assumes:" in header
        assert re.search(r"\bSIGTERM\b", header)
