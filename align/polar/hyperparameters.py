"""What the POLAR paper fitted over model and data sizes: learning rate, batch size, and the loss to expect.

arXiv 2507.05197, appendix D.1.2 and equations 9 and 10. Units are the ones with which the formulas give the paper's own
values: parameters in 2^20 and tokens in 2^30 give 1.43e-5 and 1940 pairs for POLAR-1.8B, 1.67e-5 and 4343 for POLAR-7B,
where "millions", as the text says, gives 1.5e-6 and 78,607. The loss laws take raw parameters and FLOPs (the axis says
petaflop/s-days, which would be off by 20 powers of ten).
"""

PARAMETER_UNIT, TOKEN_UNIT = 2**20, 2**30
SEARCHED_PARAMETERS = (100e6, 924e6)
"""The sizes of the models that learning rate and batch size were fitted on."""
SEARCHED_LR = (5e-6, 1e-4)
SEARCHED_BATCH = (128, 1024)


def learning_rate(parameters: float, backbone_tokens: float, tokens: float) -> float:
    """Peak learning rate for a model of ``parameters``, pre-trained as a language model on ``backbone_tokens`` and to
    be trained on ``tokens`` of pairs: ``2.306e-4 N^0.01125 Dp^-0.66587 Drm^0.33916``."""
    size, backbone, data = parameters / PARAMETER_UNIT, backbone_tokens / TOKEN_UNIT, tokens / TOKEN_UNIT
    return float(2.306e-4 * size**0.01125 * backbone**-0.66587 * data**0.33916)


def batch_size(parameters: float, tokens: float) -> float:
    """Pairs of an update: ``31.9032 N^0.06944 Drm^0.52997``."""
    return float(31.9032 * (parameters / PARAMETER_UNIT) ** 0.06944 * (tokens / TOKEN_UNIT) ** 0.52997)


def loss_of_parameters(parameters: float) -> float:
    """Validation loss in nats that the paper's law expects of a model of ``parameters`` (equation 9)."""
    return float(0.9 * parameters**-0.0425)


def loss_of_compute(flops: float) -> float:
    """Validation loss in nats that the paper's law expects of the best use of ``flops`` of training (equation 10)."""
    return float(2.4 * flops**-0.0342)


def suggest_lr(parameters: float, backbone_tokens: float, tokens: float) -> tuple[float, list[str]]:
    """:func:`learning_rate`, kept within what was searched, and complete sentences about what is out of range.

    The fit comes from learning rates of 5e-6 to 1e-4 and billions of tokens. At a thousandth of those it asks for less
    than was ever tried, with which a short run would not move. Raises ``ValueError`` for sizes that are not positive.
    """
    _positive(parameters, backbone_tokens, tokens)
    lr = learning_rate(parameters, backbone_tokens, tokens)
    kept = min(max(lr, SEARCHED_LR[0]), SEARCHED_LR[1])
    notes = _about_size(parameters)
    if kept != lr:
        notes.append(f"The fitted learning rate {lr:.2e} lies outside the searched 5e-6 to 1e-4: {kept:.0e} is taken.")
    return kept, notes


def suggest_batch(parameters: float, tokens: float, pairs: int) -> tuple[int, list[str]]:
    """:func:`batch_size`, kept between one pair and all ``pairs``, and complete sentences about what is out of range.

    The fit comes from batches of 128 to 1024. Raises ``ValueError`` for sizes that are not positive.
    """
    _positive(parameters, tokens, pairs)
    fitted = batch_size(parameters, tokens)
    batch = min(max(round(fitted), 1), pairs)
    notes = _about_size(parameters)
    if batch != round(fitted):
        notes.append(f"The fitted batch of {fitted:.3g} pairs cannot be had from {pairs}: {batch} are taken.")
    elif not SEARCHED_BATCH[0] <= batch <= SEARCHED_BATCH[1]:
        notes.append(f"The fitted batch of {batch} pairs lies outside the searched 128 to 1024.")
    return batch, notes


def _about_size(parameters: float) -> list[str]:
    if SEARCHED_PARAMETERS[0] <= parameters <= SEARCHED_PARAMETERS[1]:
        return []
    return [f"The fits are of models of 100M to 924M parameters; this one has {parameters / 1e6:.1f}M."]


def _positive(*sizes: float) -> None:
    if min(sizes) <= 0:
        raise ValueError(f"sizes must be above 0: {', '.join(map(str, sizes))}")
