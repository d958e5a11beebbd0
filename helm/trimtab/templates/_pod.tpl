{{/* What pods of every kind share: restricted Pod Security, writable folders, credentials. */}}

{{- define "trimtab.podSecurityContext" -}}
{{- mergeOverwrite (dict "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532 "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault")) (default dict .) | toYaml -}}
{{- end -}}

{{- define "trimtab.securityContext" -}}
{{- mergeOverwrite (dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL"))) (default dict .) | toYaml -}}
{{- end -}}

{{- define "trimtab.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Environment of every container: threads that wait do not spin. */}}
{{- define "trimtab.environment" -}}
- {name: OMP_WAIT_POLICY, value: PASSIVE}
{{- with . }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Volumes with the credentials of a client: token and certificates. Arguments: root, caller. */}}
{{- define "trimtab.clientVolumes" -}}
{{- if .root.Values.auth.enabled }}
- name: token
  secret:
    secretName: {{ include "trimtab.callerSecret" . }}
    items: [{key: token, path: token}]
{{- end }}
{{ include "trimtab.tlsVolume" .root }}
{{- end -}}

{{- define "trimtab.clientMounts" -}}
{{- if .Values.auth.enabled }}
- {name: token, mountPath: /etc/trimtab-token, readOnly: true}
{{- end }}
{{ include "trimtab.tlsMount" . }}
{{- end -}}

{{- define "trimtab.tlsVolume" -}}
{{- if .Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ include "trimtab.tlsSecret" . }}}
{{- end }}
{{- end -}}

{{- define "trimtab.tlsMount" -}}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /etc/trimtab-tls, readOnly: true}
{{- end }}
{{- end -}}

{{/* Secret with the token of a caller. Arguments: root, caller. */}}
{{- define "trimtab.callerSecret" -}}
{{- default (printf "%s-token-%s" (include "trimtab.fullname" .root) .caller) (index .root.Values.auth.callers .caller).existingSecret -}}
{{- end -}}

{{/* Secret with tokens.yaml of every service, under the key NAME.yaml. */}}
{{- define "trimtab.tokensSecret" -}}
{{- default (printf "%s-tokens" (include "trimtab.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "trimtab.tlsSecret" -}}
{{- default (printf "%s-tls" (include "trimtab.fullname" .)) .Values.tls.existingSecret -}}
{{- end -}}

{{/* Options of `trimtab` commands that call a service with the mounted credentials. */}}
{{- define "trimtab.clientOptions" -}}
{{- if .Values.auth.enabled }}
- --token-file=/etc/trimtab-token/token
{{- end }}
{{- if .Values.tls.enabled }}
- --ca-file=/etc/trimtab-tls/ca.crt
{{- if .Values.tls.clientCertificates }}
- --certificate-file=/etc/trimtab-tls/tls.crt
- --key-file=/etc/trimtab-tls/tls.key
{{- end }}
{{- else if .Values.auth.enabled }}
- --insecure
{{- end }}
{{- end -}}

{{/* Spec of a PersistentVolumeClaim. Arguments: root, persistence. */}}
{{- define "trimtab.claimSpec" -}}
accessModes: {{ toJson .persistence.accessModes }}
{{- with default .root.Values.global.storageClass .persistence.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .persistence.size }}
{{- end -}}
