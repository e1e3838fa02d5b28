"""The default model's file, where `make test` puts it: a test without it fails, none is skipped."""

from typing import Final

from harness import models

DEFAULT_MODEL: Final = models.registry()[models.DEFAULT_MODEL].path
