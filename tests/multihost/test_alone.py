"""What one process does, and several therefore refuse."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "given"),
    [
        ("prepare", "source=examples/pedestrians"),
        ("convert", "source=CLIP"),
        ("export", "checkpoint=CLIP"),
    ],
)
def test_several_processes_are_refused(clip, finish, tmp_path, stage, given):
    variant = ":cuhk_pedes" if stage == "prepare" else ""
    code, said = finish(
        f"launch/{stage}.py",
        f"--config=configs/{stage}.py{variant}",
        f"--config.{given.replace('CLIP', str(clip))}",
        f"--workdir={tmp_path / 'run'}",
        processes=2,
    )
    assert code == 2 and "Traceback" not in said, said
    assert said.count(f"error: one process does the work of '{stage}'") == 2
    assert not (tmp_path / "run").exists()
