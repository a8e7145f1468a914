"""Trials whose accuracies are known."""

from toolkit.tuning.trial import Fold, Trial

POINT = {  # of the full space
    "learning_rate": 1e-4, "batch_size": 64, "epochs": 20, "image_size": 224, "model_type": "resnet18",
    "optimizer": "adam", "weight_decay": 1e-4, "dropout": 0.25, "augmentation": 0.5, "patience": 10, "min_delta": 1e-4,
}  # fmt: skip


def fold(*curve, seconds=2.0, images=80):
    """A fold with this validation accuracy after each epoch, at a multiply-add an image; one of a thousand is noise."""
    epochs = tuple({"epoch": number, "val_accuracy": accuracy} for number, accuracy in enumerate(curve, 1))
    return Fold(epochs, 1 + curve.index(max(curve)), seconds, images, float(images), validation_images=1_000)


def trial(number, *accuracies, settings=None, state="complete", seconds=4.0, images=1_000, reason=""):
    """A trial with a fold of one epoch for each accuracy."""
    folds = tuple(fold(accuracy, images=images) for accuracy in accuracies)
    return Trial(number, settings or {}, state, folds, seconds, reason)


def ended(proposal, accuracy, state="complete", reason=""):
    """A trial of two folds with the same accuracy; of one when it was pruned."""
    folds = (fold(accuracy / 2, accuracy),) * (1 if state == "pruned" else 2)
    return Trial(proposal.number, proposal.settings, state, folds, 4.0, reason)


def run_trial(study, accuracy, state="complete"):
    """Propose a trial and record its result."""
    one = ended(study.ask(), accuracy, state)
    study.tell(one)
    return one
