import math

from align.tracking.alerts import AlertOnce, alerts


def kinds(metrics: dict[str, float], limit: float = 10.0) -> list[str]:
    return [alert.kind for alert in alerts(7, metrics, limit)]


def test_a_healthy_step_is_quiet() -> None:
    assert kinds({"objective/kl": 10.0, "label/pairs": 3.0, "label/ties": 45.0, "loss/total": 0.7}) == []
    assert kinds({}) == []


def test_each_sign_of_trouble() -> None:
    assert kinds({"objective/kl": 10.1}) == ["kl"]
    assert kinds({"objective/kl": 1e9}, math.inf) == []
    assert kinds({"objective/kl": math.nan}) == ["nonfinite"]
    assert kinds({"label/pairs": 0.0, "label/ties": 48.0}) == ["ties"]
    assert kinds({"label/pairs": 0.0, "label/ties": 0.0}) == []


def test_the_text_names_the_step_and_the_metrics() -> None:
    (alert,) = alerts(7, dict.fromkeys("edcba", math.inf), 10.0)
    assert alert.text.startswith("step 7: a, b, c and 2 more is NaN or infinite")


def test_a_kind_comes_once_also_after_a_resume() -> None:
    first = AlertOnce(10.0)
    assert [alert.kind for alert in first.new(1, {"objective/kl": 11.0})] == ["kl"]
    second = AlertOnce(10.0)
    second.load_state_dict(first.state_dict())
    assert second.new(2, {"objective/kl": 12.0}) == []
    assert [alert.kind for alert in second.new(3, {"loss/total": math.nan, "objective/kl": 12.0})] == ["nonfinite"]
