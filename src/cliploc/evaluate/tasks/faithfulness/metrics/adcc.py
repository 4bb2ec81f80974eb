"""ADCC: the harmonic mean of coherency, 1 − complexity and 1 − average drop."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base


@base.faithfulness_metric
class Adcc(base.FaithfulnessMetric):
    """3 / (1/coherency + 1/(1 − complexity) + 1/(1 − average drop)), of each picture.

    The average drop is that of `average_drop`. Complexity is the mean heat. Coherency is (1 + ρ)/2, with ρ the
    correlation of the map with the same method's map of the picture times the map; 0.5 where one of them is flat. For
    the second map the masked picture is rounded to 8 bits, as any picture is.
    """

    name = "adcc"
    position = 7
    paper = "Poppi et al. 2021, Revisiting The Evaluation of Class Activation Mapping for Explainability, CVPRW"
    numbers: ClassVar = {
        "adcc": base.Number("ADCC ↑", "harmonic mean of coherency, 1 − complexity and 1 − average drop", "high"),
        "coherency": base.Number(
            "coherency ↑", "correlation with the map of the masked picture, in 0–1", "high", False
        ),
        "complexity": base.Number("complexity ↓", "mean heat", "low", False),
    }
    needs_method = True

    def measure(self, judged: base.Judged) -> base.Measured:
        assert judged.others is not None
        correlation = base.pearson(judged.heat, judged.others.of_picture(judged.images * judged.heat))
        coherency = 0.5 if correlation is None else (1 + correlation) / 2
        complexity = float(judged.heat.mean())
        parts = [coherency, 1 - complexity, 1 - judged.drop]
        value = 0.0 if min(parts) <= 0 else 3 / sum(1 / part for part in parts)
        return base.Measured({"adcc": value, "coherency": coherency, "complexity": complexity})
