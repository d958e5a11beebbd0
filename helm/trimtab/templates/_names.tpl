{{/* Names, labels and the image: what every object needs. */}}

{{/* Prefix of every name. Names of components, Jobs of runs and their pods have to fit behind it. */}}
{{- define "trimtab.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name }}{{- else -}}{{ printf "%s-%s" .Release.Name $name }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that selectors use; they never change in the life of a release. Arguments: root, component. */}}
{{- define "trimtab.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of an object. Those of a pod are only the selector's, so that another chart version restarts nothing. */}}
{{- define "trimtab.labels" -}}
{{ include "trimtab.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of a pod. Arguments: root, component, podLabels. */}}
{{- define "trimtab.podLabels" -}}
{{ include "trimtab.selector" . }}
{{- with .podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* name.namespace.svc: resolves whatever the cluster's domain is. Arguments: root, component, suffix. */}}
{{- define "trimtab.host" -}}
{{- printf "%s-%s%s.%s.svc" (include "trimtab.fullname" .root) .component (default "" .suffix) .root.Release.Namespace -}}
{{- end -}}

{{/* Reference of an image; a component's own keys lie over those of all. Arguments: root, image. */}}
{{- define "trimtab.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (default dict .image) -}}
{{- $registry := default $image.registry .root.Values.global.imageRegistry -}}
{{- $repository := $image.repository -}}
{{- if $registry -}}{{- $repository = printf "%s/%s" $registry $repository -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- $variant := ternary "" (printf "-%s" $image.variant) (eq $image.variant "cpu") -}}
{{- printf "%s:%s" $repository (default (printf "%s%s" .root.Chart.AppVersion $variant) $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Name of a component's ServiceAccount. Arguments: root, component, serviceAccount. */}}
{{- define "trimtab.serviceAccountName" -}}
{{- default (printf "%s-%s" (include "trimtab.fullname" .root) .component) .serviceAccount.name -}}
{{- end -}}

{{/* Components in the order in which they are rendered; each has a section of its name in the values. */}}
{{- define "trimtab.components" -}}
[weights, generation, reward, reference, trainer, labeling]
{{- end -}}

{{/* Values of a component: its own over `common`. Arguments: root, component. */}}
{{- define "trimtab.component" -}}
{{- mergeOverwrite (deepCopy .root.Values.common) (deepCopy (index .root.Values .component)) | toYaml -}}
{{- end -}}

{{/* Seconds between SIGTERM's forerunner and SIGKILL: the sleep before it, the drain, and a margin to write and exit. */}}
{{- define "trimtab.gracePeriod" -}}
{{- default (add .preStopSeconds .drainSeconds 10) .terminationGracePeriodSeconds -}}
{{- end -}}

{{/* Where a browser finds the page of a component: its own host, or this machine's end of a port-forward. Arguments:
root, component, path, port. */}}
{{- define "trimtab.page" -}}
{{- $values := index .root.Values .component -}}
{{- if $values.gateway.enabled -}}
{{ ternary "https" "http" $values.gateway.tls }}://{{ $values.gateway.httpHostname }}{{ .path }}
{{- else if $values.ingress.enabled -}}
{{ ternary "http" "https" (empty $values.ingress.tlsSecret) }}://{{ $values.ingress.hostname }}{{ .path }}
{{- else -}}
{{ ternary "https" "http" .root.Values.tls.enabled }}://localhost:{{ .port }}{{ .path }}
{{- end -}}
{{- end -}}
