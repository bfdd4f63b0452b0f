import torch

from cellar_trainer.learning.objectives.measures import Max, Mean, Measure, Sum, merge


def test_means_sums_and_maxima_of_two_batches_are_those_of_their_tokens() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([9.0])
    measures: dict[str, Measure] = {}
    for values in (first, second):
        merge(measures, {"mean": Mean.of(values), "sum": Sum(values.sum()), "max": Max.of(values)})
    assert {name: float(measure) for name, measure in measures.items()} == {"mean": 4.0, "sum": 12.0, "max": 9.0}


def test_a_mean_where_something_holds_counts_only_there() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    measured = Mean.of(values, where=values > 1) + Mean.of(values, where=values > 9)
    assert float(measured) == 4.0
    assert float(Mean.of(values, where=values > 9)) == 0.0
    assert float(Mean.of(values > 1)) == 2 / 3


def test_the_largest_of_no_value_is_zero() -> None:
    assert float(Max.of(torch.tensor([])) + Max.of(torch.tensor([0.5]))) == 0.5
