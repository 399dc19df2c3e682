"""Latency and energy of two devices, machines or corrections never meet in one archive."""

from dataclasses import replace

import pytest
from test_search_metrics import config, search_by

from llmnas.archive import Archive
from llmnas.config import HardwareConfig
from llmnas.cost import Workload
from llmnas.cost.roofline import GPUS, roofline_ms
from llmnas.errors import UserError
from llmnas.evaluate.power import Meter, NoMeter
from llmnas.pipeline.compare import compare_strategies
from llmnas.pipeline.metrics import providers
from llmnas.pipeline.search import search_supernet
from llmnas.pipeline.stores import measured_how


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search by latency and energy on this machine."""
    objectives = {"val_loss": "min", "latency_ms": "min", "energy_j": "min"}
    context, archive = search_by(tmp_path_factory.mktemp("one_device"), objectives, {})
    archive.close()
    return context


def test_a_correction_is_measured_once_for_a_table_and_its_settings(searched, monkeypatch):
    monkeypatch.setattr("llmnas.pipeline.latency._CORRECTION_SECONDS", 0.0)
    archs = [searched.config.space.smallest(), searched.config.space.largest()]

    def latencies(**changes):
        hardware = searched.config.hardware.model_copy(update={"correction": 9})
        asked = searched.config.model_copy(update={"hardware": hardware, **changes})
        made = {provider.metric: provider for provider in providers(asked, searched.run, searched.own_metrics)}
        return made["latency_ms"].values(archs), made["latency_ms"].provenance

    first = latencies()
    latencies(seed=1)  # other networks, a correction of its own: the first one stays
    monkeypatch.setattr("llmnas.pipeline.latency.measure_latency", None)
    assert latencies()[0] == first[0]
    assert "corrected on 9 networks" in latencies()[1]
    for changes in ({"seed": 2}, {"space": searched.config.space.model_copy(update={"hidden_size": (8,)})}):
        with pytest.raises(TypeError):  # they would measure
            latencies(**changes)


@pytest.mark.parametrize(
    ("hardware", "difference"),
    [
        ({"device": "l4"}, "evaluation.hardware.device: this -> l4"),
        ({"phase": "prefill"}, "evaluation.hardware.phase: decode -> prefill"),
        ({"correction": 8}, "evaluation.hardware.correction: 0 -> 8"),
        ({"method": "measure"}, "evaluation.hardware.method: table -> measure"),
    ],
)
def test_a_search_never_goes_on_with_latencies_of_another_device_or_method(searched, monkeypatch, hardware, difference):
    monkeypatch.setattr("llmnas.pipeline.latency._CORRECTION_SECONDS", 0.0)
    asked = searched.config.model_copy(update={"hardware": searched.config.hardware.model_copy(update=hardware)})
    with pytest.raises(UserError, match=difference):
        search_supernet(replace(searched, config=asked), evaluations=14)
    with pytest.raises(UserError, match=difference):
        Archive.load(searched.run.evaluations, measured_how(asked))  # as what joins the archive later opens it
    assert len(Archive.load(searched.run.evaluations, measured_how(searched.config))) == 12


def test_a_search_never_goes_on_with_latencies_or_joules_of_another_machine(searched, monkeypatch):
    meter = Meter("a meter that was closed before", lambda work: 1.0)
    monkeypatch.setattr("llmnas.pipeline.metrics.find_meter", lambda bench: meter)
    with pytest.raises(UserError, match=r"hardware.meter: none -> a meter that was closed before"):
        Archive.load(searched.run.evaluations, measured_how(searched.config))
    monkeypatch.setattr("llmnas.evaluate.measure.processor", lambda: "another chip")
    with pytest.raises(UserError, match=r"hardware.machine.device: .* -> another chip"):
        Archive.load(searched.run.evaluations, measured_how(searched.config))


def test_only_what_decides_a_metric_that_is_asked_for_binds_a_search(monkeypatch):
    """Without latency and energy the archives of before the hardware was held go on."""
    monkeypatch.setattr("llmnas.pipeline.metrics.find_meter", lambda bench: NoMeter("closed"))
    assert set(measured_how(config())) == {"windows", "sample", "recalibrate", "halving"}

    def held(*names, **hardware):
        return measured_how(config({"constraints": dict.fromkeys(names, 1.0)}, hardware=hardware or None))["hardware"]

    assert held("prefill_latency_ms", device="l4") == {"device": "l4"}
    assert held("latency_ms", device="l4") == {"device": "l4", "phase": "decode"}
    assert held("energy_j") == {"device": "this", "phase": "decode", "meter": "none"}  # a model, the same everywhere
    assert held("decode_latency_ms") == held("decode_latency_ms", method="table", seconds=3.0)
    assert held("decode_latency_ms")["machine"]["threads"] == 1


def test_strategies_are_compared_by_the_metrics_of_the_search(searched, monkeypatch):
    objectives = {"val_loss": "min", "latency_ms": "min", "width": "max"}
    asked = config(
        {"objectives": objectives}, data={"source": searched.config.data.source}, hardware={"device": "h100"},
        compare={"strategies": ["random", "local"], "seeds": 2, "evaluations": 5},
    )  # fmt: skip
    given = replace(searched, config=asked)
    result = compare_strategies(given)
    assert set(result["strategies"]) == {"random", "local"}
    assert "an ESTIMATE, the roofline of h100" in searched.run.recorded("compare")["provenance"]["latency_ms"]
    folder = searched.run.result("compare").parent
    for name in ("evaluations.sqlite", "local-seed1.sqlite"):
        archive = Archive.load(folder / name)
        expected = [roofline_ms(e.arch, asked.space.base, Workload(), "decode", GPUS["h100"]) for e in
                    archive.evaluations]  # fmt: skip
        assert [e.metrics["latency_ms"] for e in archive.evaluations] == expected
        assert expected
    assert compare_strategies(given) == result
    other = asked.model_copy(update={"hardware": HardwareConfig(device="l4")})
    monkeypatch.setattr("llmnas.pipeline.compare.providers", None)  # before anything is measured
    with pytest.raises(UserError, match=r"hardware\.device: h100 -> l4"):
        compare_strategies(replace(given, config=other))
