"""What is wrong with a cluster and its InferenceServices, the likeliest cause first. `shoal doctor` shows it.

    facts = await collect(api, namespace, ...)     reads, and changes nothing; what may not be read is said
    findings = diagnose(facts)                     pure

It reads what people can read with kubectl, as the person who runs it: the operator need not be there.
"""

from shoal.operator.diagnosis.collecting import collect
from shoal.operator.diagnosis.diagnosing import diagnose
from shoal.operator.diagnosis.facts import Facts, ServiceFacts
from shoal.operator.diagnosis.findings import Finding

__all__ = ["Facts", "Finding", "ServiceFacts", "collect", "diagnose"]
