"""A search by ask and tell, driven by Hyperopt's Tree-structured Parzen Estimator.

References
----------
Bergstra, Bardenet, Bengio, Kégl: Algorithms for Hyper-Parameter Optimization, NIPS 2011.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK, Trials, space_eval, tpe
from hyperopt.base import Domain

from toolkit.tuning.space import Space, expression, flatten


@dataclass(frozen=True)
class Trial:
    """One point of the space and what came of it."""

    number: int
    settings: dict[str, Any]
    state: Literal["complete", "failed"]
    mean_accuracy: float = float("nan")
    std_accuracy: float = float("nan")
    seconds: float = 0.0
    reason: str = ""


class Study:
    """Proposes points of a space and learns from what came of them.

    Parameters
    ----------
    space
        The dimensions.
    seed
        Trial ``n`` is proposed with a seed made of this one and ``n``, so a proposal depends only
        on the results before it.
    max_evals
        How many trials are planned; a quarter of them, 5 to 20, are random to begin with. Hyperopt's
        own 20 would make a short search purely random.

    Examples
    --------
    >>> from toolkit.tuning.space import QUICK
    >>> study = Study(QUICK, seed=0, max_evals=10)
    >>> number, settings = study.ask()
    >>> number, settings["model_type"], 3 <= settings["epochs"] <= 6
    (0, 'simple_cnn', True)
    >>> study.tell(Trial(number, settings, "complete", mean_accuracy=0.9))
    >>> study.best.mean_accuracy
    0.9
    """

    def __init__(self, space: Space, seed: int, max_evals: int) -> None:
        self.trials: list[Trial] = []
        self.start_up = max(5, min(20, max_evals // 4))
        self._seed = seed
        self._expression = expression(space)
        self._domain = Domain(lambda point: point, self._expression)
        self._history = Trials()

    def ask(self) -> tuple[int, dict[str, Any]]:
        """The next trial's number and hyperparameters."""
        (number,) = self._history.new_trial_ids(1)
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0] % 2**31)
        self._history.refresh()
        documents = tpe.suggest([number], self._domain, self._history, seed, n_startup_jobs=self.start_up)
        self._history.insert_trial_docs(documents)
        self._history.refresh()
        chosen = {name: values[0] for name, values in documents[0]["misc"]["vals"].items() if values}
        return number, _plain(flatten(space_eval(self._expression, chosen)))

    def tell(self, trial: Trial) -> None:
        """Record what came of a trial; a failed one counts as the worst possible."""
        complete = trial.state == "complete"
        document = next(document for document in self._history.trials if document["tid"] == trial.number)
        document["state"] = JOB_STATE_DONE
        document["result"] = (
            {"status": STATUS_OK, "loss": 1 - trial.mean_accuracy} if complete else {"status": STATUS_FAIL}
        )
        self._history.refresh()
        self.trials.append(trial)

    @property
    def ranking(self) -> list[Trial]:
        """Complete trials, best first."""
        return sorted((trial for trial in self.trials if trial.state == "complete"), key=lambda t: -t.mean_accuracy)

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest mean accuracy; of equals the first."""
        return self.ranking[0] if self.ranking else None


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Python numbers instead of numpy's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
