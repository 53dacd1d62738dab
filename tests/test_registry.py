"""What installed packages add through entry points: engines, exporters and metrics, whole ones and broken ones."""

from __future__ import annotations

import pytest

from autotune import doctor, engines, exporters, metrics
from autotune.engines.base import Engine, EngineOptions, Flag
from autotune.errors import MissingPrerequisite
from autotune.score import Objective, Selector
from autotune.trial import Configuration

ADDED = """\
from autotune.metrics import Metric

joy = Metric("joy", "smiles", "maximize", "row", "Smiles a request.")
spread = Metric("spread_ms", "ms", "minimize", "row", "Spread.", True)
other = 7
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package `acme_added` with the given entry points."""

    def install(points):
        info = tmp_path / "acme_added-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-added\nVersion: 1\n")
        (info / "entry_points.txt").write_text(points)
        (tmp_path / "acme_added.py").write_text(ADDED)
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("acme_nowhere:engine", "No module named 'acme_nowhere'"),
        ("acme_added:engin", "has no attribute 'engin'"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_one_clear_sentence(installed, tmp_path, place, why):
    installed(f"[autotune.engines]\nacme = {place}\n[autotune.exporters]\nacme = {place}\n")
    for get, kind in ((engines.get, "engine"), (exporters.get, "exporter")):
        with pytest.raises(
            MissingPrerequisite, match=f"The {kind} 'acme' of the installed package 'acme-added' cannot be"
        ) as caught:
            get("acme")
        assert why in str(caught.value)
    (finding,) = (one for one in doctor.examine(tmp_path / "store") if one.name == "acme")
    assert not finding.usable and why in finding.remedy


def test_a_package_adds_metrics_that_a_study_can_ask_for(installed):
    installed("[autotune.metrics]\njoy = acme_added:joy\nspread_ms = acme_added:spread\n")
    assert metrics.lookup("joy").unit == "smiles" and {"joy", "spread_ms.p99"} <= set(metrics.names())
    assert Objective(selector=Selector.parse("spread_ms.p99"), direction="minimize").name == "spread_ms.p99"
    with pytest.raises(KeyError, match="joy"):
        metrics.lookup("joyy")


@pytest.mark.parametrize("point", ["joy = acme_added:other", "smile = acme_added:joy", "kl = acme_added:joy"])
def test_a_metric_that_is_none_or_has_another_name_is_refused(installed, point):
    installed(f"[autotune.metrics]\n{point}\n")
    with pytest.raises(MissingPrerequisite, match=r"must name an autotune\.metrics\.Metric of that name"):
        metrics.lookup("sps")


def test_the_default_of_an_engine_that_cannot_be_asked_is_that_of_its_flags():
    class Acme(Engine):
        kind = "acme"
        serves = "http"

        def identity(self): ...

        def launch(self, configuration, context): ...

        def open(self, launch, context): ...

        def flags(self):
            return {
                "speed": Flag(name="speed", option="--speed", type="int", default=5),
                "mode": Flag(name="mode", option="--mode"),
                "size": Flag(name="size", option="--size", default=1),
            }

    engine = Acme(EngineOptions(kind="acme", model="m", fixed={"size": 2}))
    default, tried = engine.preflight([Configuration(engine="acme"), Configuration(engine="acme", values={"speed": 9})])
    assert default.resolved == {"speed": 5, "size": 2} and tried.resolved == {"speed": 9, "size": 2}
