from cellar_executor.kernels.uids import HostUids


def test_ranges_do_not_overlap_and_gaps_are_used_again() -> None:
    uids = HostUids(base=100)
    assert [uids.take(), uids.take(10), uids.take(), uids.take(10)] == [100, 101, 111, 112]
    uids.give_back(101)
    assert uids.take(11) == 122
    assert [uids.take(4), uids.take(6), uids.take()] == [101, 105, 133]
