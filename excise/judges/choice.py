"""Which judge params.yaml names. What a judge needs is loaded at once, so that what is missing is said at once."""

from excise.judges.keywords import judge_by_keywords
from excise.judges.verdicts import Judge
from schemas.params.judge import Judging


def chosen_judge(params: Judging) -> Judge:
    """The judge that `evaluate.judge` names, ready to judge.

    Raises:
        StageError: it needs what is not there: a model, a key, a template.
    """
    # Imported where they are used: transformers is slow, and few ask an endpoint.
    if params.judge == "classifier":
        from excise.judges.classifier import classifier_judge

        assert params.classifier is not None  # by its schema
        return classifier_judge(params.classifier)
    if params.judge == "api":
        from excise.judges.api import api_judge

        assert params.api is not None  # by its schema
        return api_judge(params.api)
    return judge_by_keywords
