"""The command ``train``: mistakes are one line, and its help lists the flags."""

import pytest

from tests.support.runs import refused, refused_here, run


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config=configs/nowhere.py", "the config file cannot be loaded: there is no file configs/nowhere.py"),
        ("--config.learning_rate=1", "the config has no setting 'learning_rate'"),
        ("--config.=1", "the flags cannot be read"),
        ("--config.lr=fast", "could not convert string to float"),
        ("--workdir=/proc/nowhere", "cannot write to /proc/nowhere"),
        ("--workdir=ftp://bucket/run", "or s3://BUCKET/NAME; got the address ftp://bucket/run"),
        ("--coordinator=localhost:1", "needs --num_processes=N and --process_id=0 to N - 1; got None and None"),
        ("--wokdir=x", "wokdir"),
        ("avatars", "expected flags of the form --name=value"),
    ],
)
def test_bad_commands_are_one_line(argument, message, data_dir, tmp_path):
    base = ["--config=configs/points.py", f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={data_dir}"]
    refused_here("train", [*base, argument], message)
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_refused_script_ends_with_one_line_and_code_2():
    refused("train.py", ["--workdir=x"], "expected --config=NAME")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "is_folder", "message"),
    [
        ("info.json", True, "info.json cannot be used (Is a directory): move it away"),
        ("checkpoints", False, "checkpoints (File exists): choose another folder"),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_one_line(name, is_folder, message, data_dir, tmp_path):
    place = tmp_path / name
    place.mkdir() if is_folder else place.write_text("")
    data = [
        f"--config.data.data_dir={data_dir}",
        "--config.data.split=train[:4%]",
        "--config.data.test_split=test[:5%]",
    ]
    refused("train.py", ["--config=configs/points.py", f"--workdir={tmp_path}", *data], message)


@pytest.mark.thorough
def test_a_config_file_without_a_config_is_one_line(tmp_path):
    (tmp_path / "config.py").write_text("def get_config():\n    return {'steps': 3}\n")
    arguments = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
    refused("train.py", arguments, "returns a dict, expected the ConfigDict of flowguide.config.default()")


@pytest.mark.thorough
def test_help_lists_the_flags():
    done = run("train.py", "--help")
    assert done.returncode == 0
    for word in ("--config", "--workdir", "--stop_after", "flowguide train"):
        assert word in done.stdout
