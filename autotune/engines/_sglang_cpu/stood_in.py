"""Imported before SGLang where it is imported ahead of its launch: puts the stand-ins in place."""

import launch  # type: ignore[import-not-found]

launch.stand_in()
