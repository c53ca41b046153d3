"""Names of tasks, of groups of them, and of the reference competition's modes."""

CAPTION_TASKS = ("audiocaption", "audiocaption_v2", "caption")
TASK_GROUPS = {"aac": CAPTION_TASKS}  # as the published evaluator calls them; its asr is the task of that name

# mode -> group of tasks. A submission has no references to score; its entries carry the ids of the test set.
MODES = {"submission_asr": "asr", "submission_aac": "aac", "valid_asr": "asr", "valid_aac": "aac"}
SUBMISSIONS = ("submission_asr", "submission_aac")


def is_of_task(task: str, wanted: str | None) -> bool:
    """Whether a task is the one wanted, or in the group of that name; None wants all."""
    return wanted in (None, task) or task in TASK_GROUPS.get(wanted or "", ())
