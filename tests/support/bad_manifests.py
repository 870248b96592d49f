"""Manifests that are refused, and with which words."""

from __future__ import annotations

from typing import Any

# Its config.json, as far as a manifest repeats it.
QWEN3_8B = {
    "numHiddenLayers": 36,
    "numAttentionHeads": 32,
    "numKeyValueHeads": 8,
    "headDim": 128,
    "maxPositionEmbeddings": 40960,
    "weights": "16.4G",
}
# Fields that differ from the minimal manifest, the field that is at fault, and words of the API server's answer: the
# numbers, and what to do.
BAD_MANIFESTS: list[tuple[dict[str, Any], str, str]] = [
    ({"metadata.name": "9lives"}, "metadata.name", "starting with a letter"),
    ({"metadata.name": "a" * 41}, "metadata.name", "at most 40"),
    ({"spec.model.name": "-x"}, "spec.model.name", "should match"),
    ({"spec.model.name": "x" * 129}, "spec.model.name", "128"),
    ({"spec.model.uri": None}, "spec.model.uri", "Required value"),
    ({"spec.model.uri": "ftp://x"}, "spec.model.uri", "should match"),
    ({"spec.model.uri": "/here/m.gguf"}, "spec.model.uri", "/here/m.gguf is not in the pods"),
    ({"spec.model.uri": "file:///models/m.gguf"}, "spec.model.uri", "with spec.model.cacheClaim"),
    ({"spec.model.uri": "pypi://a==1/b", "spec.model.revision": "v1"}, "spec.model.revision", "only hf:// models"),
    ({"spec.model.sha256": "abc"}, "spec.model.sha256", "should match"),
    ({"spec.model.dtype": "fp8"}, "spec.model.dtype", '"auto", "bfloat16", "float32"'),
    ({"spec.model.maxModelLen": 0}, "spec.model.maxModelLen", "greater than or equal to 1"),
    ({"spec.model.chatTemplate": "/t.jinja"}, "spec.model.chatTemplate", "a path below /models/"),
    ({"spec.model.max_model_len": 5}, "spec.model.max_model_len", "unknown field"),
    ({"spec.worker": {}}, "spec.worker", "unknown field"),
    ({"spec.workers.replicas": 0}, "spec.workers.replicas", "greater than or equal to 1"),
    ({"spec.workers.replicas": 65}, "spec.workers.replicas", "less than or equal to 64"),
    ({"spec.workers.replicas": "2"}, "spec.workers.replicas", "must be of type integer"),
    ({"spec.workers.device": "tpu"}, "spec.workers.device", '"cpu", "cuda", "simulated"'),
    ({"spec.workers.gpuMemoryUtilization": 0.9}, "spec.workers.gpuMemoryUtilization", "device = cpu"),
    (
        {"spec.workers": {"device": "cuda", "gpuMemoryUtilization": 0}},
        "spec.workers.gpuMemoryUtilization",
        "greater than 0",
    ),
    (
        {"spec.workers.maxNumSeqs": 600},
        "spec.workers.maxNumSeqs",
        "is more than spec.workers.maxNumBatchedTokens (512",
    ),
    (
        {"spec.workers": {"maxNumSeqs": 9, "maxNumBatchedTokens": 8}},
        "spec.workers.maxNumSeqs",
        "give at most that",
    ),
    ({"spec.workers.simulated": {}}, "spec.workers.simulated", "leave it out, or give simulated"),
    (
        {"spec.workers": {"device": "simulated", "simulated": {"model": "llama-3.1-8b-h100", "stepMilliseconds": 5}}},
        "spec.workers.simulated.stepMilliseconds",
        "whose times were measured",
    ),
    ({"spec.workers.resources": {"cpu": "two"}}, "spec.workers.resources.cpu", "should match"),
    ({"spec.workers.resources": {"memory": "8GB"}}, "spec.workers.resources.memory", "should match"),
    ({"spec.kvCache.blockSize": 24}, "spec.kvCache.blockSize", '"8", "16", "32", "64", "128"'),
    (
        {"spec.workers": {"device": "cuda"}, "spec.kvCache.blockSize": 8},
        "spec.kvCache.blockSize",
        "is too small for a GPU; give 16 or more",
    ),
    ({"spec.kvCache.memory": "1 GB"}, "spec.kvCache.memory", "should match"),
    ({"spec.kvCache.memory": 0}, "spec.kvCache.memory", "greater than or equal to 1"),
    ({"spec.workers": {"device": "cuda"}, "spec.kvCache.memory": "1Gi"}, "spec.kvCache.memory", "leave it out"),
    ({"spec.gateway.port": 70000}, "spec.gateway.port", "less than or equal to 65535"),
    ({"spec.gateway.auth": {}}, "spec.gateway.auth", "give apiKeysSecret"),
    ({"spec.gateway.auth": {"apiKeysFile": "/keys"}}, "spec.gateway.auth", "the files of your machine"),
    (
        {"spec.gateway": {"replicas": 2, "endpointPicker": {}}},
        "spec.gateway.endpointPicker",
        "several gateways cannot share a port",
    ),
    (
        {"spec.gateway.endpointPicker": {"port": 8080}},
        "spec.gateway.endpointPicker.port",
        "is taken, by pods (8000, 8080",
    ),
    ({"spec.routing.policy": "best"}, "spec.routing.policy", '"round_robin"'),
    (
        {"spec.flowControl": {"maxQueuedRequests": 10, "maxQueuedRequestsPerTenant": 11}},
        "spec.flowControl.maxQueuedRequestsPerTenant",
        "is more than spec.flowControl.maxQueuedRequests for all",
    ),
    ({"spec.flowControl.tenants": [{"name": "a"}]}, "spec.flowControl.tenants", "told apart by their API keys"),
    (
        {
            "spec.flowControl": {"maxQueuedTokens": 10, "tenants": [{"name": "a", "maxQueuedTokens": 11}]},
            "spec.gateway.auth": {"apiKeysSecret": {"name": "k"}},
        },
        "spec.flowControl.tenants[0].maxQueuedTokens",
        "spec.flowControl.maxQueuedTokens for all",
    ),
    (
        {
            "spec.flowControl": {"tenants": [{"name": "a"}, {"name": "a"}]},
            "spec.gateway.auth": {"apiKeysSecret": {"name": "k"}},
        },
        "spec.flowControl.tenants[1].name",
        "Duplicate value",
    ),
    ({"spec.observability.otlpEndpoint": "x:4317"}, "spec.observability.otlpEndpoint", "should match"),
    ({"spec.failover.maxMoves": -1}, "spec.failover.maxMoves", "greater than or equal to 0"),
    ({"spec.prefill": {}}, "spec.prefill", "needs spec.decode"),
    ({"spec.decode": {}}, "spec.decode", "needs spec.prefill"),
    ({"spec.ratio": {"prefill": 1, "decode": 3}}, "spec.ratio", "give both, or leave it out"),
    ({"spec.prefill": {}, "spec.decode": {}, "spec.ratio": {"prefill": 1}}, "spec.ratio.decode", "Required value"),
    (
        {"spec.prefill": {}, "spec.decode": {}, "spec.workers": {"device": "cuda", "parallelism": {"tensor": 2}}},
        "spec.workers.parallelism",
        "give it there, for each",
    ),
    (
        {"spec.prefill": {}, "spec.decode": {}, "spec.workers": {"resources": {"cpu": 2}}},
        "spec.workers.resources",
        "give it there, for each",
    ),
    (
        {"spec.prefill": {}, "spec.decode": {}, "spec.workers": {"replicas": 3}},
        "spec.workers.replicas",
        "or spec.ratio, which divides it",
    ),
    (
        {"spec.prefill": {}, "spec.decode": {}, "spec.ratio": {"prefill": 1, "decode": 1}},
        "spec.workers.replicas",
        "give at least 2",
    ),
    (
        {
            "spec.prefill": {"replicas": 2},
            "spec.decode": {},
            "spec.ratio": {"prefill": 1, "decode": 1},
            "spec.workers": {"replicas": 4},
        },
        "spec.prefill.replicas",
        "leave one of them out",
    ),
    ({"spec.workers.parallelism": {"tensor": 2}}, "spec.workers.parallelism", "device = cpu; leave it out"),
    ({"spec.workers.parallelism": {"tensor": 0}}, "spec.workers.parallelism.tensor", "greater than or equal to 1"),
    ({"spec.workers.resources": {"gpus": 1}}, "spec.workers.resources.gpus", "or give cuda"),
    ({"spec.workers.resources": {"gpuMemory": "80Gi"}}, "spec.workers.resources.gpuMemory", "or give cuda"),
    (
        {"spec.workers": {"device": "cuda", "parallelism": {"tensor": 4}, "resources": {"gpus": 3}}},
        "spec.workers.resources.gpus",
        "give a divisor of that",
    ),
    (
        {"spec.workers": {"device": "cuda", "parallelism": {"tensor": 64, "pipeline": 16}}},
        "spec.workers.parallelism",
        "more than 512 GPUs",
    ),
    (
        {"spec.workers": {"device": "cuda", "parallelism": {"tensor": 2, "expert": 4}}},
        "spec.workers.parallelism.expert",
        "does not divide the GPUs of tensor x data",
    ),
    (
        {"spec.model.config": QWEN3_8B, "spec.workers": {"device": "cuda", "parallelism": {"tensor": 3}}},
        "spec.workers.parallelism.tensor",
        "cannot share the attention heads",
    ),
    (
        {
            "spec.model.config": {**QWEN3_8B, "numAttentionHeads": 36, "numKeyValueHeads": 4},
            "spec.workers": {"device": "cuda", "parallelism": {"tensor": 6}},
        },
        "spec.workers.parallelism.tensor",
        "neither divide nor repeat the KV heads",
    ),
    (
        {"spec.model.config": QWEN3_8B, "spec.workers": {"device": "cuda", "parallelism": {"pipeline": 5}}},
        "spec.workers.parallelism.pipeline",
        "cannot share the layers",
    ),
    (
        {"spec.model.config": QWEN3_8B, "spec.workers": {"device": "cuda", "parallelism": {"tensor": 2, "expert": 2}}},
        "spec.workers.parallelism.expert",
        "cannot share the experts",
    ),
    (
        {
            "spec.model.config": QWEN3_8B,
            "spec.prefill": {"parallelism": {"tensor": 2}},
            "spec.decode": {"parallelism": {"tensor": 5}},
            "spec.workers": {"device": "cuda"},
        },
        "spec.decode.parallelism.tensor",
        "cannot share the attention heads",
    ),
    (
        {"spec.model.config": QWEN3_8B, "spec.model.maxModelLen": 50000},
        "spec.model.maxModelLen",
        "maxPositionEmbeddings",
    ),
    ({"spec.model.config": {"numHiddenLayers": 2}}, "spec.model.config.headDim", "Required value"),
    (
        {"spec.model.loadFormat": "gguf", "spec.model.quantization": "fp8"},
        "spec.model.quantization",
        "whose files say it",
    ),
    ({"spec.adapters": [{"name": "a", "uri": "/a"}]}, "spec.adapters[0].uri", "not in the pods"),
    ({"spec.adapters": [{"name": "a", "uri": "ftp://a/b"}]}, "spec.adapters[0].uri", "https?"),
    ({"spec.adapters": [{"name": "smol", "uri": "hf://a/b"}]}, "spec.adapters[0].name", "give each name once"),
    ({"spec.podTemplate": {"loraRegistry": {}}}, "spec.podTemplate.loraRegistry", "no meaning without adapters"),
    (
        {"spec.adapters": [{"name": "a", "uri": "hf://a/b"}, {"name": "a", "uri": "hf://a/c"}]},
        "spec.adapters[1].name",
        "Duplicate value",
    ),
    (
        {"spec.adapters": [{"name": "a", "uri": "hf://a/b", "rank": 1000}]},
        "spec.adapters[0].rank",
        "less than or equal to 512",
    ),
    ({"spec.speculative": {"method": "eagle"}}, "spec.speculative.draftModel", "what method eagle guesses with"),
    (
        {"spec.speculative": {"method": "ngram", "draftModel": {"uri": "hf://a/b"}}},
        "spec.speculative.draftModel",
        "no meaning for method ngram",
    ),
    (
        {"spec.speculative": {"method": "draft_model", "draftModel": {"uri": "/a/b"}}},
        "spec.speculative.draftModel.uri",
        "/a/b is not in the pods",
    ),
    ({"spec.autoscaling": {}}, "spec.autoscaling.maxReplicas", "Required value"),
    (
        {"spec.autoscaling": {"minReplicas": 4, "maxReplicas": 2}},
        "spec.autoscaling.minReplicas",
        "is more than spec.autoscaling.maxReplicas",
    ),
    (
        {"spec.autoscaling": {"maxReplicas": 2, "metric": {"name": "tokensPerSecond"}}},
        "spec.autoscaling.metric.target",
        "what one worker is to make",
    ),
    (
        {"spec.autoscaling": {"maxReplicas": 2, "metric": {"name": "kv_cache", "target": 80}}},
        "spec.autoscaling.metric.target",
        "give at most 1, such as 0.8",
    ),
    (
        {"spec.prefill": {}, "spec.decode": {}, "spec.autoscaling": {"maxReplicas": 2}},
        "spec.autoscaling",
        "give spec.ratio",
    ),
    (
        {
            "spec.prefill": {},
            "spec.decode": {},
            "spec.ratio": {"prefill": 1, "decode": 1},
            "spec.workers": {"replicas": 2},
            "spec.autoscaling": {"maxReplicas": 2},
        },
        "spec.autoscaling.minReplicas",
        "give at least 2",
    ),
    ({"spec.kvCache": {"codec": "fp8"}}, "spec.kvCache.codec", "give spec.kvCache.cpu"),
    ({"spec.kvCache": {"ssd": "1Gi", "ssdVolume": {"claim": "c"}}}, "spec.kvCache.ssd", "needs memory in front of it"),
    ({"spec.kvCache": {"cpu": "1Gi", "ssd": "1Gi"}}, "spec.kvCache.ssd", "needs a place"),
    (
        {"spec.kvCache": {"cpu": "1Gi", "ssd": "1Gi", "ssdFolder": "/kv"}},
        "spec.kvCache.ssdFolder",
        "is not in the pods; give spec.kvCache.ssdVolume",
    ),
    ({"spec.kvCache": {"ssdVolume": {"claim": "c"}}}, "spec.kvCache.ssdVolume", "no meaning without spec.kvCache.ssd"),
    (
        {"spec.kvCache": {"cpu": "1Gi", "ssd": "1Gi", "ssdVolume": {"claim": "c", "hostPath": "/kv"}}},
        "spec.kvCache.ssdVolume",
        "give one of hostPath, storageClassName and claim",
    ),
    (
        {"spec.kvCache": {"cpu": "1Gi", "ssd": "1Gi", "ssdVolume": {"hostPath": "/kv"}}},
        "spec.kvCache.ssdVolume.hostPath",
        "give spec.kvCache.placement = Node",
    ),
    ({"spec.kvCache": {"placement": "Node"}}, "spec.kvCache.placement", "no meaning without a KV store"),
    ({"spec.kvCache": {"peersSecret": {"name": "a"}}}, "spec.kvCache.peersSecret", "no meaning without a KV store"),
    ({"spec.gateway.http": {"enabled": False, "port": 80}}, "spec.gateway.http.port", "leave it out"),
    ({"spec.gateway.grpc": {"port": 8080}}, "spec.gateway.grpc.port", "that of another port"),
    (
        {"spec.gateway": {"grpc": {"port": 9000}, "http": {"port": 9000}}},
        "spec.gateway.http.port",
        "that of another port",
    ),
    ({"spec.gateway.service": {"type": "ExternalName"}}, "spec.gateway.service.type", '"LoadBalancer"'),
    ({"spec.rollout": {"strategy": "BlueGreen"}}, "spec.rollout.strategy", '"Recreate", "Surge"'),
    ({"spec.rollout": {"drainSeconds": 4000}}, "spec.rollout.drainSeconds", "less than or equal to 3600"),
    ({"spec.deletionPolicy": "Keep"}, "spec.deletionPolicy", '"Delete", "Orphan"'),
    ({"spec.imagePullSecrets": [{"name": "a"}, {"name": "a"}]}, "spec.imagePullSecrets[1].name", "Duplicate value"),
    ({"spec.imagePullSecrets": ["a"]}, "spec.imagePullSecrets[0]", "must be of type object"),
    ({"spec.podTemplate": {"worker": {"containers": []}}}, "spec.podTemplate.worker.containers", "unknown field"),
    ({"spec.podTemplate": {"kvStore": {}}}, "spec.podTemplate.kvStore", "without a KV store"),
    (
        {"spec.podTemplate": {"kvStore": {}}, "spec.kvCache": {"cpu": "1Gi"}},
        "spec.podTemplate.kvStore",
        "give podTemplate.worker, or placement Node",
    ),
    ({"spec.kvCache": {"placement": "Node"}}, "spec.kvCache.placement", "without a KV store"),
    ({"spec.kvCache": {"peersSecret": {"name": "kv"}}}, "spec.kvCache.peersSecret", "without a KV store"),
    (
        {"spec.kvCache": {"cpu": "1Gi", "ssd": "1Gi", "ssdVolume": {"hostPath": "/kv"}}},
        "spec.kvCache.ssdVolume.hostPath",
        "placement = Node, or storageClassName",
    ),
]


# Whose contents a schema does not see: what only `shoal validate` and the webhook refuse, with their messages.
BAD_FOR_THE_WEBHOOK: list[tuple[dict[str, Any], str, str]] = [
    ({"spec.kvCache": {"cpu": "1Mi"}}, "spec.kvCache.cpu", "'1Mi' is too small for a KV store; give 16.0Mi or more"),
    ({"spec.model.uri": "hf://org/model/../x"}, "spec.model.uri", "'../x' is not a plain relative path"),
    ({"spec.model.uri": "pypi://a/b"}, "spec.model.uri", "expected pypi://project==version/path/inside/the/wheel"),
    (
        {"spec.model.sha256": "0" * 64},
        "spec.model.sha256",
        "a sha256 pins one file; name it (hf://org/model@revision/file) or pin a commit",
    ),
    ({"spec.adapters": [{"name": "a", "uri": "hf://?"}]}, "spec.adapters[0].uri", "model sources take no query (?)"),
    (
        {"spec.adapters": [{"name": "a", "uri": "https://me:secret@models.example.com/a"}]},
        "spec.adapters[0].uri",
        "https://models.example.com/a: give no user and password",
    ),
    (
        {
            "spec.adapters": [
                {"name": "a", "uri": "hf://a/b/adapter_model.safetensors#sha256=" + "1" * 64, "sha256": "0" * 64}
            ]
        },
        "spec.adapters[0].sha256",
        "two different sha256 given",
    ),
    ({"spec.kvCache": {"memory": "0Mi"}}, "spec.kvCache.memory", "'0Mi' is nothing; give 64Mi or more"),
    (
        {"spec.kvCache": {"memory": "2Gi"}, "spec.workers.resources": {"memory": "1Gi"}},
        "spec.workers.resources.memory",
        "1Gi is also the most that a pod may use, and KV blocks alone are 2.0Gi, beside which weights need",
    ),
    (
        {"spec.gateway.service": {"annotations": {"a b": "c"}}},
        "spec.gateway.service.annotations",
        "'a b' is no key; give at most 63 of",
    ),
    (
        {"spec.podTemplate": {"worker": {"metadata": {"labels": {"shoal.dev/inferenceservice": "x"}}}}},
        "spec.podTemplate.worker.metadata.labels",
        "is how the operator finds its pods; give a key of another domain",
    ),
    (
        {"spec.podTemplate": {"worker": {"metadata": {"labels": {"team": "a b"}}}}},
        "spec.podTemplate.worker.metadata.labels",
        "'a b' is no value of a label",
    ),
    (
        {"spec.podTemplate": {"gateway": {"spec": {"tolerations": "all"}}}},
        "spec.podTemplate.gateway.spec.tolerations",
        "is not a list of mappings; give it as in a Kubernetes PodSpec",
    ),
    (
        {"spec.podTemplate": {"gateway": {"spec": {"containers": [{"image": "x"}]}}}},
        "spec.podTemplate.gateway.spec.containers",
        "has an entry without a name, by which it is merged; name it",
    ),
    (
        {"spec.podTemplate": {"worker": {"spec": {"nodeselector": {"pool": "edge"}}}}},
        "spec.podTemplate.worker.spec.nodeselector",
        "did you mean 'nodeSelector'?",
    ),
    (
        {"spec.podTemplate": {"worker": {"spec": {"containers": [{"name": "worker", "limits": {"memory": "2Gi"}}]}}}},
        "spec.podTemplate.worker.spec.containers[0].limits",
        "unknown field of a Kubernetes Container (as of 1.36); did you mean 'resources.limits'?",
    ),
    (
        {
            "spec.podTemplate": {
                "worker": {"spec": {"containers": [{"name": "worker", "resources": {"limits": {"memory": "2GB"}}}]}}
            }
        },
        "spec.podTemplate.worker.spec.containers[0].resources.limits.memory",
        "'2GB' is no quantity; give one such as 500m, 2 or 512Mi; did you mean 2G or 2Gi?",
    ),
    (
        {
            "spec.podTemplate": {
                "worker": {"spec": {"containers": [{"name": "worker", "env": [{"name": "A", "value": 5}]}]}}
            }
        },
        "spec.podTemplate.worker.spec.containers[0].env[0].value",
        "5 is not allowed; give text: put it in quotes",
    ),
    (
        {"spec.podTemplate": {"gateway": {"spec": {"hostNetwork": "yes"}}}},
        "spec.podTemplate.gateway.spec.hostNetwork",
        "'yes' is not allowed; give true or false",
    ),
    (
        {"spec.podTemplate": {"tokenizer": {"spec": {"securityContext": []}}}},
        "spec.podTemplate.tokenizer.spec.securityContext",
        "[] is not a mapping of the fields of a Kubernetes PodSecurityContext",
    ),
    (
        {"spec.podTemplate": {"tokenizer": {"spec": {"nodeSelector": "edge"}}}},
        "spec.podTemplate.tokenizer.spec.nodeSelector",
        "'edge' is not a mapping",
    ),
    (
        {"spec.podTemplate": {"gateway": {"spec": {"initContainers": [{"name": "envoy", "$patch": "remove"}]}}}},
        "spec.podTemplate.gateway.spec.initContainers[0].$patch",
        "'remove' is not allowed; give delete or replace",
    ),
    (
        {"spec.podTemplate": {"worker": {"spec": {"containers": [{"name": "wroker", "args": ["-v"]}]}}}},
        "spec.podTemplate.worker.spec.containers[0].name",
        "'wroker' is none of the planned ones (containers: worker), and a container of its own needs an image",
    ),
    (
        {
            "spec.model.config": QWEN3_8B,
            "spec.workers": {
                "device": "cuda",
                "gpuMemoryUtilization": 0.85,
                "resources": {"gpuProduct": "NVIDIA-L4"},
            },
            "spec.model.maxModelLen": 40960,
        },
        "spec.model.maxModelLen",
        "one sequence of 40960 tokens needs 6.0 GB of KV cache on each GPU (0.147 MB a token), but weights of 16.4 GB "
        "on each GPU (16.4 GB / 1) leave 5.5 GB (0.85 of a GPU's 25.8 GB, as NVIDIA-L4 have), for 37312 tokens; give "
        "at most that, or spec.workers.parallelism.tensor of more than 1",
    ),
    (
        {"spec.model.config": QWEN3_8B, "spec.workers": {"device": "cuda", "resources": {"gpuMemory": "16Gi"}}},
        "spec.workers.resources",
        "weights of 16.4 GB on each GPU (16.4 GB / 1) do not fit 15.5 GB (0.9 of a GPU's 17.2 GB); give "
        "spec.workers.parallelism.tensor of more than 1, GPUs with more memory or smaller weights",
    ),
    (
        {"spec.model.config": QWEN3_8B, "spec.kvCache": {"memory": "64Mi"}, "spec.model.maxModelLen": 4096},
        "spec.model.maxModelLen",
        "4096 tokens do not fit spec.kvCache.memory = 64Mi, which holds 448; give at most 448, or 576.0Mi of memory",
    ),
]
