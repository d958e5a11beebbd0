{{/* What the launcher makes a run from: a Job, and a claim where each run has its own. The launcher names them and puts
     the run's own arguments behind `args`. */}}
{{- define "trimtab.runTemplate" -}}
{{- $values := mergeOverwrite (deepCopy .Values.common) (deepCopy .Values.trainer.run) -}}
{{- $name := printf "%s-run" (include "trimtab.fullname" .) -}}
{{- $labels := include "trimtab.labels" (dict "root" . "component" "run") -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ $name }}
  labels:
    {{- $labels | nindent 4 }}
    {{- with $values.queueName }}
    kueue.x-k8s.io/queue-name: {{ . }}
    {{- end }}
spec:
  {{- if $values.queueName }}
  # Until Kueue admits it.
  suspend: true
  {{- end }}
  {{- if gt (int $values.processes) 1 }}
  # The pods of one run, each a rank; they end together.
  completionMode: Indexed
  completions: {{ $values.processes }}
  parallelism: {{ $values.processes }}
  {{- end }}
  # A pod that is gone for no fault of the run is started again by the launcher, which knows how to resume it.
  backoffLimit: 0
  {{- if not (kindIs "invalid" $values.ttlSecondsAfterFinished) }}
  ttlSecondsAfterFinished: {{ $values.ttlSecondsAfterFinished }}
  {{- end }}
  template:
    metadata:
      labels:
        {{- include "trimtab.podLabels" (dict "root" . "component" "run" "podLabels" $values.podLabels) | nindent 8 }}
      {{- with $values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "trimtab.pullSecrets" . | nindent 6 }}
      restartPolicy: Never
      serviceAccountName: {{ include "trimtab.fullname" . }}-run
      automountServiceAccountToken: {{ eq $values.discovery "endpointSlices" }}
      enableServiceLinks: false
      {{- if gt (int $values.processes) 1 }}
      subdomain: {{ include "trimtab.ranks" . }}
      {{- end }}
      # Time to finish a step and save a checkpoint.
      terminationGracePeriodSeconds: {{ $values.stopSeconds }}
      securityContext:
        {{- include "trimtab.podSecurityContext" $values.podSecurityContext | nindent 8 }}
      {{- include "trimtab.scheduling" (dict "root" . "component" "run" "values" $values) | nindent 6 }}
      containers:
        - name: run
          image: {{ include "trimtab.image" (dict "root" . "image" $values.image) }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          args:
            - run
            - /etc/trimtab-run/spec.yaml
            - {{ printf "--set=services=%s" (include "trimtab.config.runServices" . | fromYaml | toJson) | squote }}
            - --report-to={{ include "trimtab.host" (dict "root" . "component" "trainer") }}:50051
            {{- range include "trimtab.clientOptions" . | fromYamlArray }}
            - {{ printf "--report-%s" (trimPrefix "--" .) }}
            {{- end }}
            {{- with $values.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          env:
            {{- include "trimtab.environment" $values.extraEnv | nindent 12 }}
            {{- if gt (int $values.processes) 1 }}
            - name: RANK
              valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
            - name: JOB
              valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
            - {name: WORLD_SIZE, value: {{ $values.processes | quote }}}
            - {name: MASTER_ADDR, value: $(JOB)-0.{{ include "trimtab.ranks" . }}}
            - {name: MASTER_PORT, value: "29500"}
            {{- end }}
          resources:
            {{- include "trimtab.resources" $values | nindent 12 }}
          securityContext:
            {{- include "trimtab.securityContext" $values.securityContext | nindent 12 }}
          volumeMounts:
            - {name: spec, mountPath: /etc/trimtab-run, readOnly: true}
            - {name: runs, mountPath: /var/lib/trimtab/runs}
            - {name: tmp, mountPath: /tmp}
            {{- include "trimtab.clientMounts" . | nindent 12 }}
            {{- include "trimtab.runMounts" $values | nindent 12 }}
      volumes:
        - name: spec
          configMap: {name: {{ $name }}}
        - name: runs
          persistentVolumeClaim: {claimName: {{ default $name $values.persistence.existingClaim }}}
        - name: tmp
          emptyDir: {}
        {{- include "trimtab.clientVolumes" (dict "root" . "caller" "run") | nindent 8 }}
        {{- include "trimtab.runVolumes" $values | nindent 8 }}
{{- if $values.persistence.perRun }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ $name }}
  labels:
    {{- $labels | nindent 4 }}
spec:
  {{- include "trimtab.claimSpec" (dict "root" . "persistence" $values.persistence) | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "trimtab.runVolumes" -}}
{{- if .shm.sizeLimit }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .shm.sizeLimit }}}
{{- end }}
{{- with .modelVolume }}
- name: models
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "trimtab.runMounts" -}}
{{- if .shm.sizeLimit }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if .modelVolume }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- with .extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Service by whose name the ranks of a run find the first one. */}}
{{- define "trimtab.ranks" -}}{{ include "trimtab.fullname" . }}-ranks{{- end -}}
