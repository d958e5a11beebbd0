"""The engine `vllm`: vLLM in this process, with our sampling, our weights and our version spans."""
