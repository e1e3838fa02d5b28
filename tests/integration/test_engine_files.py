"""What may happen to the model's file while the engine runs."""

import os
import shutil
from pathlib import Path

from tests.integration.engine_process import MODEL, launched, text_of


def test_a_model_file_cut_off_under_a_running_engine_changes_nothing(tmp_path: Path) -> None:
    """On this device nothing of the file is read after the start, so no page of it can vanish."""
    model = tmp_path / "model.gguf"
    shutil.copyfile(MODEL, model)
    with launched(tmp_path, model=model) as engine:
        before = text_of(engine.execute(prompt="The capital of France is", max_tokens=12))
        os.truncate(model, 4096)
        assert text_of(engine.execute(prompt="The capital of France is", max_tokens=12)) == before
        assert engine.client.get("/health").json()["status"] == "healthy"
        assert engine.stop() == 0
