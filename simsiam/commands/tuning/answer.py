"""What a search has found and what it has not, in sentences."""

import json
import math

from simsiam.commands.tuning.objective import standard_error
from simsiam.commands.tuning.plan import Plan
from simsiam.report.study import StudyRecord, TrialRecord
from utils.run_dir import RunDirectory

CLEAR_DIFFERENCE = 2  # standard errors; a smaller difference may be chance


def format_score(score: float, plan: Plan) -> str:
    if plan.judge.objective == "knn":
        return f"kNN {score:.2f} %"
    return f"score {score:.2f}"


def describe_answer(record: StudyRecord, plan: Plan) -> list[str]:
    """Return what the search has found, in sentences."""
    best = record.best
    if best is None or best.score is None:
        return ["No trial was trained to the end, so there is no answer yet. Continue the search."]
    epochs = record.trial_epochs
    sentences = [
        f"The best trial is number {best.number}: {format_score(best.score, plan)} "
        f"after {epochs} epochs."
    ]
    start = record.start
    if best.is_start:
        sentences.append("These are the settings that you gave: the search found none better.")
    elif start is not None and start.score is not None and start.outcome == "finished":
        sentences.append(
            f"The settings that you gave reached {format_score(start.score, plan)} in the same "
            f"time. {describe_difference(best.score - start.score, start.score, plan)}"
        )
    sentences += describe_learning(best, epochs, plan)
    planned = plan.base["epochs"]
    if planned > epochs:
        sentences.append(
            f"The planned run of {planned} epochs is {planned / epochs:.3g} times as long. "
            "Expect a better result from it than from the trial, and smaller differences."
        )
    return sentences


def describe_difference(difference: float, accuracy: float, plan: Plan) -> str:
    """Return whether a difference to the settings of the flags is more than chance."""
    if plan.judge.objective != "knn":
        return "The score without labels has no unit: only the order of the trials means something."
    clear = clear_difference(accuracy, plan)
    text = (
        f"The difference is {difference:.2f} points. With {plan.judge.queries:,} images, "
        f"differences below {clear:.1f} points may be chance"
    )
    if difference < clear:
        return f"{text}, so the search shows no clear gain: your own settings may do as well."
    return f"{text}, so this one is probably real."


def clear_difference(accuracy: float, plan: Plan) -> float:
    """Return from which difference to an accuracy in percent on, a difference is hardly chance."""
    error = math.sqrt(2) * standard_error(accuracy, plan.judge.queries)
    return CLEAR_DIFFERENCE * error


def shows_no_clear_gain(record: StudyRecord, plan: Plan) -> bool:
    """Return whether the best trial may be better than the settings of the flags by chance only."""
    best = record.best
    start = record.start
    if plan.judge.objective != "knn" or best is None or start is None or best.is_start:
        return False
    if best.score is None or start.score is None or start.outcome != "finished":
        return False
    return best.score - start.score < clear_difference(start.score, plan)


def describe_learning(best: TrialRecord, epochs: int, plan: Plan) -> list[str]:
    """Return a sentence if trials are so short that even the best one has hardly learned."""
    summary = RunDirectory(plan.config.run_dir / best.run_name).summary
    if plan.judge.objective != "knn" or best.score is None or not summary.exists():
        return []
    untrained = json.loads(summary.read_text()).get("kNN_untrained")
    if untrained is None:
        return []
    if best.score - untrained >= clear_difference(untrained, plan):
        return []
    return [
        f"Before training, kNN accuracy was {untrained:.2f} %. So trials of {epochs} epochs hardly "
        "learn, and their order may be chance: start another search with more --trial-epochs."
    ]


def describe_doubts(record: StudyRecord, plan: Plan) -> list[str]:
    """Return what the results do not show, in sentences."""
    sentences = [
        "The best of many trials is partly luck: expect a little less from the same settings "
        "with another seed.",
        f"What is best after {record.trial_epochs} epochs need not be best after "
        f"{plan.base['epochs']}: a high learning rate and small views look better in short runs.",
    ]
    if plan.judge.objective == "rankme":
        sentences.append(
            "No labels were used. RankMe orders runs of one kind fairly well in its paper "
            "(Garrido et al. 2023), less so when the augmentation changes. Label a few hundred "
            "images to be surer."
        )
    elif plan.judge.uses_test_images:
        sentences.append(
            "The train images have too few labels, so the trials were compared on test images. "
            "Their accuracy is no test result any more. Label other images for that."
        )
    elif plan.judge.leave_one_out:
        sentences.append(
            "The trials were compared on their own train images, each with the others. Training "
            "does not use their labels, but it has seen the images, so the accuracy of other "
            "images may differ."
        )
    if not plan.judge.uses_test_images:
        sentences.append("No test image was used, so test images can still tell the true gain.")
    return sentences
