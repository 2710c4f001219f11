"""Options held against the installed vLLM: names against its signatures, values against its types.

Imports vLLM, which takes seconds, but loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caption_flow.worker.engines import vllm_interface as interface
from caption_flow.worker.engines.base import EngineUnavailable
from caption_flow.worker.engines.options import DEFAULT_MAX_TOKENS
from caption_flow.worker.engines.vllm_options import (
    CheckedOptions,
    Findings,
    check_engine_names,
    check_sampling_names,
)


def check_options(
    engine_options: Mapping[str, Any],
    *samplings: Mapping[str, Any],
    owner_options: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> CheckedOptions:
    """Check options without loading a model; blocking, takes seconds the first time.

    Args:
        engine_options: fields of vLLM's ``AsyncEngineArgs``, as the orchestrator asks for them.
        samplings: each parameters of vLLM's ``SamplingParams``.
        owner_options: engine options of the worker's owner, laid over the others and trusted.
        trust_remote_code: the worker's owner lets the orchestrator's options run code here.

    Raises:
        EngineUnavailable: vLLM is missing, or options are unknown, impossible or not to be trusted;
            all of them are named.

    """
    interface.import_vllm()
    known = interface.engine_option_names()
    asked = check_engine_names(engine_options, known, trusted=trust_remote_code)
    owned = check_engine_names(owner_options or {}, known, trusted=True)
    checked = [check_sampling(sampling) for sampling in samplings]
    findings = (asked, owned, *checked)
    # Stages often share their sampling: what is wrong with it is said once.
    errors = dict.fromkeys(error for found in findings for error in found.errors)
    if errors:
        raise EngineUnavailable("; ".join(errors))
    return CheckedOptions(
        engine={**asked.options, **owned.options},
        samplings=tuple(found.options for found in checked),
        warnings=tuple(dict.fromkeys(w for found in findings for w in found.warnings)),
    )


def check_sampling(sampling: Mapping[str, Any]) -> Findings:
    """Check sampling parameters, names and values, and fill in the defaults of a worker."""
    findings = check_sampling_names(sampling, interface.sampling_parameter_names())
    findings.options.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    if "seed" in findings.options and interface.on_cpu():
        # Seen with 0.32: a seeded request among others with pictures ends the engine.
        del findings.options["seed"]
        findings.warnings.append("sampling parameter 'seed' is left out: vLLM on CPUs dies of it")
    try:
        interface.sampling_params(findings.options)
    except ValueError as error:
        findings.errors.append(f"sampling parameters are impossible: {error}")
    return findings
