"""Groups of tests that share what takes long go to one worker of pytest."""

import pytest


@pytest.mark.xdist_group("one worker")
def test_a_group_is_part_of_the_name_by_which_tests_are_sent_to_workers(request: pytest.FixtureRequest) -> None:
    # Workers alone have this option.
    if not request.config.getoption("loadgroup", False):
        pytest.skip("tests are not sent in groups")
    assert request.node.nodeid.endswith("@one worker")
