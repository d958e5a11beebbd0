{{/* Configuration of the services, as the classes of trimtab_services read it. */}}

{{/* The file of a service: what the chart knows, and the component's own `config` over it. Arguments: root, component. */}}
{{- define "trimtab.config" -}}
{{- $values := include "trimtab.component" . | fromYaml -}}
{{- $config := include "trimtab.config.server" (dict "root" .root "component" .component "values" $values) | fromYaml -}}
{{- $config = merge (include (printf "trimtab.config.%s" .component) (dict "root" .root "component" .component "values" $values) | fromYaml) $config -}}
{{- mergeOverwrite $config $values.config | toYaml -}}
{{- end -}}

{{- define "trimtab.config.server" -}}
{{- $safe := and .root.Values.tls.enabled (or .root.Values.auth.enabled .root.Values.tls.clientCertificates) -}}
host: 0.0.0.0
grpc_port: 50051
health_port: 50052
http_port: 8080
metrics_port: 9090
drain_s: {{ .values.drainSeconds }}
insecure: {{ not $safe }}
{{- if .root.Values.auth.enabled }}
tokens_file: /etc/trimtab-tokens/tokens.yaml
{{- end }}
{{- if .root.Values.tls.enabled }}
tls:
  certificate_file: /etc/trimtab-tls/tls.crt
  key_file: /etc/trimtab-tls/tls.key
  {{- if .root.Values.tls.clientCertificates }}
  client_ca_file: /etc/trimtab-tls/ca.crt
  {{- end }}
{{- end }}
{{- end -}}

{{/* How a client reaches a server over TLS: the files of ClientTLS. */}}
{{- define "trimtab.config.clientTLS" -}}
ca_file: /etc/trimtab-tls/ca.crt
{{- if .Values.tls.clientCertificates }}
certificate_file: /etc/trimtab-tls/tls.crt
key_file: /etc/trimtab-tls/tls.key
{{- end }}
{{- end -}}

{{- define "trimtab.config.model" -}}
# So that clients have moved to other replicas by the time that this one is told to end.
connection_age_s: {{ mulf 0.6 .values.preStopSeconds }}
{{- if .values.model.s3.url }}
model_folder: {{ include "trimtab.downloadedModel" . }}
{{- else if .values.model.folder }}
model_folder: {{ .values.model.folder | quote }}
{{- else }}
cache_directory: /var/lib/trimtab/cache
weights:
  address: {{ include "trimtab.host" (dict "root" .root "component" "weights") }}:50051
  channel: {{ .values.model.channel }}
  {{- if .root.Values.auth.enabled }}
  token_file: /etc/trimtab-token/token
  {{- end }}
  {{- if .root.Values.tls.enabled }}
  tls:
    {{- include "trimtab.config.clientTLS" .root | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "trimtab.config.generation" -}}{{ include "trimtab.config.model" . }}{{- end -}}
{{- define "trimtab.config.reward" -}}{{ include "trimtab.config.model" . }}{{- end -}}
{{- define "trimtab.config.reference" -}}{{ include "trimtab.config.model" . }}{{- end -}}

{{- define "trimtab.config.weights" -}}
# Where those who publish and fetch find the blobs.
advertise_host: {{ include "trimtab.host" . }}
store: {{ ternary .values.store.s3.url "/var/lib/trimtab/store" (eq .values.store.kind "s3") }}
{{- end -}}

{{- define "trimtab.config.trainer" -}}
directory: /var/lib/trimtab/runs
scaler_port: 50061
# TLS may end in front of the page.
secure_cookies: {{ include "trimtab.isOverHTTPS" . | eq "true" }}
start_timeout_s: {{ .values.run.startTimeoutSeconds }}
launcher:
  kind: kubernetes
  template_file: /etc/trimtab-run-template/template.yaml
  namespace: {{ .root.Release.Namespace }}
  resumes: {{ .values.run.resumes }}
  reschedule_timeout_s: {{ .values.run.rescheduleTimeoutSeconds }}
{{- if .root.Values.auth.enabled }}
token_file: /etc/trimtab-token/token
{{- end }}
{{- if .root.Values.tls.enabled }}
report_tls:
  {{- include "trimtab.config.clientTLS" .root | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "trimtab.config.labeling" -}}
{{- if eq .values.database.kind "sqlite" }}
database: sqlite:////var/lib/trimtab/labeling.sqlite
{{- end }}
# TLS may end in front of the service.
secure_cookies: {{ include "trimtab.isOverHTTPS" . | eq "true" }}
{{- end -}}

{{/* Whether browsers reach the page of a component over TLS. Arguments: root, values. */}}
{{- define "trimtab.isOverHTTPS" -}}
{{- or .root.Values.tls.enabled (and .values.ingress.enabled (ne .values.ingress.tlsSecret "")) (and .values.gateway.enabled .values.gateway.tls) -}}
{{- end -}}

{{/* `services` of a run's spec: every replica behind a headless Service; weights and labeling behind an address that stays. */}}
{{- define "trimtab.config.runServices" -}}
{{- $root := . -}}
{{- range $component := list "generation" "reward" "reference" }}
{{ $component }}:
  {{- if eq $root.Values.trainer.run.discovery "endpointSlices" }}
  endpoint_slices: {{ $root.Release.Namespace }}/{{ include "trimtab.fullname" $root }}-{{ $component }}-headless:grpc
  {{- else }}
  dns: {{ include "trimtab.host" (dict "root" $root "component" $component "suffix" "-headless") }}:50051
  {{- end }}
{{- end }}
weights:
  addresses: ["{{ include "trimtab.host" (dict "root" . "component" "weights") }}:50051"]
{{- if .Values.labeling.enabled }}
labeling:
  addresses: ["{{ include "trimtab.host" (dict "root" . "component" "labeling") }}:50051"]
{{- end }}
patience_s: {{ .Values.trainer.run.patienceSeconds }}
start_timeout_s: {{ .Values.trainer.run.patienceSeconds }}
{{- if .Values.auth.enabled }}
token_file: /etc/trimtab-token/token
{{- end }}
{{- if .Values.tls.enabled }}
tls:
  {{- include "trimtab.config.clientTLS" . | nindent 2 }}
{{- else if .Values.auth.enabled }}
insecure: true
{{- end }}
{{- end -}}
