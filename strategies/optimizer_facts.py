"""Facts about timm's optimizers that need no torch to be read."""

# Which parameters have an effect on each of timm's optimizers. Timm's own table (OptimInfo) lists the parameters that
# they accept, which are more: Adafactor ignores the second beta, and bitsandbytes' SGD ignores Nesterov's momentum.
_PARAMETERS: dict[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for fields, names in {
        "": "adadelta adagrad",
        "momentum": """
            adafactorbv adafactorbvc bnbsgd bnbsgd8bit cadafactorbv cadafactorbvc crmsproptf kron kronc kronw madgrad
            madgradw rmsprop rmsproptf rmsproptfc rmsproptfw""",
        "momentum nesterov": """
            csgdc csgdp csgdw fusedsgd larc lars momentum nesterov nesterovw nlarc nlars sgd sgdc sgdp sgdw""",
        "beta1": "adafactor cadafactor",
        "beta1 beta2": """
            adabelief adahessian adam adamax adamc adamw adamwlegacy adan adanw adopt adoptc adoptw bnbadam bnbadam8bit
            bnbadamw bnbadamw8bit bnbademamix bnbademamix8bit bnblion bnblion8bit cadamc cadamw cadan cadanw cadopt
            cadoptc cadoptw clamb clambw claprop clion clionc cmars cnadamc cnadamw fusedadam fusedadamw fusedlamb
            fusednovograd lamb lambc lambcd lambcw lambw laprop lapropc lion lionc mars nadam nadamc nadamlegacy nadamw
            novograd novogradc novogradw radabelief radam radamlegacy radamw""",
        "beta1 beta2 nesterov": "adamp cadamp",
        "beta1 beta2 momentum nesterov": "adamuon muon nadamuon nmuon",
    }.items()
    for name in names.split()
}


def optimizer_parameters(name: str) -> frozenset[str]:
    """Which of ``momentum``, ``beta1``, ``beta2`` and ``nesterov`` have an effect on timm's optimizer of that name.

    An optimizer of a later timm, unknown here, has none: it keeps its defaults.
    """
    return _PARAMETERS.get(name, frozenset())
