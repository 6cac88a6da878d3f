from batchfree.bench.origin import here, load


def test_an_origin_names_machine_and_versions():
    found = here("batchfree bench tiny")
    assert found.command == "batchfree bench tiny"
    assert found.versions["torch"]
    assert found.machine["simd"]
    assert found.machine["load before"] is None or load() >= 0
