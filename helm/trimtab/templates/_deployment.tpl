{{/* The one Deployment of every service. Arguments: root, component. */}}
{{- define "trimtab.deployment" -}}
{{- $root := .root -}}
{{- $component := .component -}}
{{- $values := include "trimtab.component" . | fromYaml -}}
{{- $name := printf "%s-%s" (include "trimtab.fullname" $root) $component -}}
{{- $config := include "trimtab.config" . -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "trimtab.labels" . | nindent 4 }}
spec:
  {{- /* A number that nobody set belongs to whoever scales by hand; an upgrade leaves it as it is. */ -}}
  {{- if hasKey $values "replicas" }}
  replicas: {{ $values.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  {{- if include "trimtab.isOneProcess" (dict "component" $component "values" $values) }}
  # Its volume belongs to one pod at a time.
  strategy: {type: Recreate}
  {{- else }}
  strategy:
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  {{- end }}
  selector:
    matchLabels:
      {{- include "trimtab.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "trimtab.podLabels" (dict "root" $root "component" $component "podLabels" $values.podLabels) | nindent 8 }}
      annotations:
        # A file that is read at start only: another one restarts this component, and no other.
        checksum/config: {{ sha256sum $config }}
        {{- if eq $component "trainer" }}
        checksum/run-template: {{ include "trimtab.runTemplate" $root | sha256sum }}
        {{- end }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "trimtab.pullSecrets" $root | nindent 6 }}
      serviceAccountName: {{ include "trimtab.serviceAccountName" (dict "root" $root "component" $component "serviceAccount" $values.serviceAccount) }}
      automountServiceAccountToken: {{ eq $component "trainer" }}
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ include "trimtab.gracePeriod" $values }}
      securityContext:
        {{- include "trimtab.podSecurityContext" $values.podSecurityContext | nindent 8 }}
      {{- include "trimtab.scheduling" (dict "root" $root "component" $component "values" $values) | nindent 6 }}
      {{- if dig "model" "s3" "url" "" $values }}
      initContainers:
        {{- include "trimtab.modelDownload" (dict "root" $root "values" $values) | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ $component }}
          image: {{ include "trimtab.image" (dict "root" $root "image" $values.image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          # Why it ended is the end of its log, in the status of the pod.
          terminationMessagePolicy: FallbackToLogsOnError
          args:
            - serve
            - {{ $component }}
            - --config=/etc/trimtab/{{ $component }}.yaml
            {{- with $values.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          env:
            {{- include "trimtab.environment" $values.extraEnv | nindent 12 }}
            {{- if eq (dig "store" "kind" "" $values) "s3" }}
            {{- include "trimtab.bucketEnvironment" $values.store.s3 | nindent 12 }}
            {{- end }}
            {{- if eq (dig "database" "kind" "" $values) "postgresql" }}
            # Its URL holds a password, so it stands in no configuration.
            - name: TRIMTAB_LABELING__DATABASE
              valueFrom:
                secretKeyRef: {name: {{ $values.database.postgresql.existingSecret }}, key: {{ $values.database.postgresql.key }}}
            {{- end }}
          ports:
            - {name: grpc, containerPort: 50051}
            - {name: health, containerPort: 50052}
            - {name: http, containerPort: 8080}
            - {name: metrics, containerPort: 9090}
            {{- if eq $component "trainer" }}
            - {name: scaler, containerPort: 50061}
            {{- end }}
          # The health port is plaintext, since kubelet's probe speaks no TLS. Liveness asks nobody else; readiness needs
          # a verified version of the weights.
          startupProbe:
            grpc: {port: 50052, service: startup}
            periodSeconds: 1
            timeoutSeconds: 1
            failureThreshold: {{ $values.startupSeconds }}
          livenessProbe:
            grpc: {port: 50052, service: liveness}
            periodSeconds: 10
            timeoutSeconds: 10
            failureThreshold: 6
          readinessProbe:
            grpc: {port: 50052, service: readiness}
            periodSeconds: 2
            timeoutSeconds: 5
            failureThreshold: 3
          lifecycle:
            # Those who resolve names learn that this replica goes before it stops taking work.
            preStop: {sleep: {seconds: {{ $values.preStopSeconds }}}}
          resources:
            {{- include "trimtab.resources" $values | nindent 12 }}
          securityContext:
            {{- include "trimtab.securityContext" $values.securityContext | nindent 12 }}
          volumeMounts:
            - {name: config, mountPath: /etc/trimtab, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            - {name: data, mountPath: /var/lib/trimtab}
            {{- include "trimtab.serverMounts" (dict "root" $root "component" $component "values" $values) | nindent 12 }}
      volumes:
        - name: config
          configMap: {name: {{ $name }}}
        - name: tmp
          emptyDir: {}
        - name: data
          {{- include "trimtab.dataVolume" (dict "root" $root "component" $component "values" $values) | nindent 10 }}
        {{- include "trimtab.serverVolumes" (dict "root" $root "component" $component "values" $values) | nindent 8 }}
{{- end -}}

{{/* Where a pod may run. Arguments: root, component, values. */}}
{{- define "trimtab.scheduling" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "resourceClaims" }}
{{- with index $.values $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $selector := dict "matchLabels" (include "trimtab.selector" $ | fromYaml) }}
  - {{- merge (deepCopy .) (dict "labelSelector" $selector) | toYaml | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Resources of the container; claims of devices are all of the pod's. */}}
{{- define "trimtab.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .resourceClaims -}}
{{- $claims := list -}}
{{- range .resourceClaims }}{{- $claims = append $claims (dict "name" .name) -}}{{- end -}}
{{- $_ := set $resources "claims" $claims -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* What is behind /var/lib/trimtab. */}}
{{- define "trimtab.dataVolume" -}}
{{- $persistence := default dict .values.persistence -}}
{{- if and $persistence.enabled (not (include "trimtab.isKeptElsewhere" .values)) -}}
persistentVolumeClaim:
  claimName: {{ default (printf "%s-%s" (include "trimtab.fullname" .root) .component) $persistence.existingClaim }}
{{- else -}}
emptyDir: {}
{{- end -}}
{{- end -}}

{{/* Says something where what a component keeps is in a bucket or a server of databases, not on a claim. Argument: its
     values. */}}
{{- define "trimtab.isKeptElsewhere" -}}
{{- if or (eq (dig "store" "kind" "" .) "s3") (eq (dig "database" "kind" "" .) "postgresql") -}}elsewhere{{- end -}}
{{- end -}}

{{/* Says something where one process alone may write what a component keeps. Arguments: component, values. */}}
{{- define "trimtab.isOneProcess" -}}
{{- if or (has .component (list "weights" "trainer")) (eq (dig "database" "kind" "" .values) "sqlite") -}}one{{- end -}}
{{- end -}}

{{/* Who a service is when it calls others: replicas read weights; the trainer's token is that of its runs. */}}
{{- define "trimtab.callerOf" -}}
{{- if has .component (list "generation" "reward" "reference") -}}replica{{- else if eq .component "trainer" -}}run{{- end -}}
{{- end -}}

{{- define "trimtab.serverVolumes" -}}
{{- $caller := include "trimtab.callerOf" . -}}
{{- if .root.Values.auth.enabled }}
- name: tokens
  secret:
    secretName: {{ include "trimtab.tokensSecret" .root }}
    items: [{key: {{ .component }}.yaml, path: tokens.yaml}]
{{- end }}
{{ if $caller }}{{ include "trimtab.clientVolumes" (dict "root" .root "caller" $caller) }}{{ else }}{{ include "trimtab.tlsVolume" .root }}{{ end }}
{{- if eq .component "trainer" }}
- name: run-template
  configMap: {name: {{ include "trimtab.fullname" .root }}-run-template}
{{- end }}
{{- if .values.shm.sizeLimit }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .values.shm.sizeLimit }}}
{{- end }}
{{- with include "trimtab.modelVolume" . | fromYaml }}
- name: models
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "trimtab.serverMounts" -}}
{{- if .root.Values.auth.enabled }}
- {name: tokens, mountPath: /etc/trimtab-tokens, readOnly: true}
{{- end }}
{{ if include "trimtab.callerOf" . }}{{ include "trimtab.clientMounts" .root }}{{ else }}{{ include "trimtab.tlsMount" .root }}{{ end }}
{{- if eq .component "trainer" }}
- {name: run-template, mountPath: /etc/trimtab-run-template, readOnly: true}
{{- end }}
{{- if .values.shm.sizeLimit }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if include "trimtab.modelVolume" . | fromYaml }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Source of the volume at /models. */}}
{{- define "trimtab.modelVolume" -}}
{{- if dig "model" "s3" "url" "" .values -}}
emptyDir: {}
{{- else -}}
{{- dig "model" "volume" dict .values | toYaml -}}
{{- end -}}
{{- end -}}

{{/* Credentials and endpoint of a bucket, as for the AWS command line. Argument: its values. */}}
{{- define "trimtab.bucketEnvironment" -}}
{{- with .endpoint }}
- {name: AWS_ENDPOINT_URL_S3, value: {{ . | quote }}}
{{- end }}
{{- with .region }}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- if .existingSecret }}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ $key }}
  valueFrom:
    secretKeyRef: {name: {{ $.existingSecret }}, key: {{ $key }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* The container that copies the model out of its bucket first. Arguments: root, values. */}}
{{- define "trimtab.modelDownload" -}}
- name: model
  image: {{ include "trimtab.image" (dict "root" .root "image" .values.image) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args: [weights, download, {{ .values.model.s3.url | quote }}, {{ include "trimtab.downloadedModel" . }}]
  env:
    {{- include "trimtab.environment" .values.extraEnv | nindent 4 }}
    {{- include "trimtab.bucketEnvironment" .values.model.s3 | nindent 4 }}
  resources:
    {{- include "trimtab.resources" .values | nindent 4 }}
  securityContext:
    {{- include "trimtab.securityContext" .values.securityContext | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "trimtab.downloadedModel" -}}/models/model{{- end -}}
