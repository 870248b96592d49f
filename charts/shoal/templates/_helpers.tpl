{{- define "shoal.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains "operator" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-operator" (.Release.Name | trunc 40 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "shoal.selector" -}}
app.kubernetes.io/name: shoal-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "shoal.labels" -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/part-of: shoal
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "shoal.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "shoal.fullname" .) -}}
{{- end -}}

{{- define "shoal.tag" -}}
{{- .Values.images.tag | default .Chart.AppVersion -}}
{{- end -}}

{{/* A registry and its folder may be given without the slash behind it; what ends in another sign stays. */}}
{{- define "shoal.imagePrefix" -}}
{{- regexReplaceAll "([A-Za-z0-9])$" .Values.images.prefix "${1}/" -}}
{{- end -}}

{{/* Whether an object of another project's kind is made: (list . "auto" "group/version/Kind"). Empty: no. */}}
{{- define "shoal.wants" -}}
{{- $root := index . 0 -}}
{{- $wish := toString (index . 1) -}}
{{- if or (eq $wish "true") (and (eq $wish "auto") ($root.Capabilities.APIVersions.Has (index . 2))) -}}yes{{- end -}}
{{- end -}}

{{/* Where Envoys and gateways learn their endpoints. */}}
{{- define "shoal.discoveryPort" -}}
{{- ternary 18443 18000 (not (empty .Values.discovery.tlsSecret)) -}}
{{- end -}}

{{- define "shoal.webhookSecret" -}}
{{- printf "%s-webhook" (include "shoal.fullname" .) -}}
{{- end -}}
