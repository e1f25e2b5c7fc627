/* kernels/cuda/draft_plain_ops.cu - see draft_plain_ops.cuh. */
#include "draft_plain_ops.cuh"
#include "device.cuh"
#include "plain_launch.cuh"
#include "plain_pick.cuh"

#define THREADS 256u

__global__ void __launch_bounds__(THREADS) draft_plain_start_kernel(const __grid_constant__ draft_plain_step a)
{
    const uint32_t r = blockIdx.x;
    const cuda_draft_question &q = a.question[r];
    const float *state = a.states + ((uint64_t)q.seq * a.states_rows + (q.position - 1) % a.states_rows) * a.backbone;
    float *to = a.joined + (uint64_t)r * 2 * a.backbone;

    chain_trigger();
    if (threadIdx.x == 0) a.turn[r] = { 0, q.position, q.seq, 1 }, a.see[r] = { 0, q.position - 1, q.seq, 1 };
    for (uint32_t i = threadIdx.x; i < a.backbone; i += THREADS) {
        to[i] = plain_mul(plain_table_value(a.table, q.token, a.backbone, i), a.embed_scale);
        to[a.backbone + i] = ld_l2(state + i);
    }
}

__global__ void __launch_bounds__(PICK_THREADS) draft_plain_pick_kernel(const __grid_constant__ draft_plain_step a, uint32_t index)
{
    __shared__ pick_shared sh;
    const uint32_t r = blockIdx.x;
    const cuda_draft_question &q = a.question[r];
    const plain_choice choice = { a.logits + (uint64_t)r * a.vocab, NULL, a.left_out, a.vocab, PLAIN_NOBODY };
    float *to = a.joined + (uint64_t)r * 2 * a.backbone, lead;

    chain_trigger();
    chain_wait();
    if (index >= q.steps) return;
    const uint32_t token = plain_pick(choice, plain_sampling(q.seed, q.temperature, q.top_k, q.top_p, q.min_p, a.vocab), (uint64_t)q.position + 1 + index, sh, &lead);

    if (threadIdx.x == 0) a.token[r * CUDA_DRAFT_STEPS_MAX + index] = token, a.lead[r * CUDA_DRAFT_STEPS_MAX + index] = lead;
    for (uint32_t i = threadIdx.x; i < a.backbone; i += PICK_THREADS) {
        to[i] = plain_mul(plain_table_value(a.table, token < a.vocab ? token : 0, a.backbone, i), a.embed_scale);
        to[a.backbone + i] = ld_l2(a.hidden + (uint64_t)r * a.backbone + i);
    }
}

__global__ void draft_plain_publish_kernel(const __grid_constant__ draft_plain_step a, draft_plain_result *result, uint64_t number)
{
    const uint32_t r = threadIdx.x;

    chain_trigger();
    chain_wait();
    if (r < a.count) {
        for (uint32_t i = 0; i < a.question[r].steps; i++)
            result->token[r][i] = ld_l2(a.token + r * CUDA_DRAFT_STEPS_MAX + i), result->lead[r][i] = ld_l2(a.lead + r * CUDA_DRAFT_STEPS_MAX + i);
        __threadfence_system();
    }
    __syncthreads();
    if (r == 0) *(volatile uint64_t *)&result->round = number;         /* W1 -> draft_plain_wait: the answers are in host memory */
}

int draft_plain_start_launch(const struct draft_plain_step *step, void *stream)
{
    draft_plain_start_kernel<<<step->count, THREADS, 0, (cudaStream_t)stream>>>(*step);
    return launch_check(cudaGetLastError(), "draft start");
}

int draft_plain_pick_launch(const struct draft_plain_step *step, uint32_t index, void *stream)
{
    return plain_chained(draft_plain_pick_kernel, dim3(step->count), PICK_THREADS, 0, stream, *step, index);
}

int draft_plain_publish_launch(const struct draft_plain_step *step, struct draft_plain_result *result, uint64_t number, void *stream)
{
    return plain_chained(draft_plain_publish_kernel, dim3(1), 32, 0, stream, *step, result, number);
}

/* The same carveout as the other kernels of the chain (plain_ops.cu says why). */
int draft_plain_ops_init(void)
{
    int rc = launch_prepare((const void *)draft_plain_start_kernel, 0);

    if (rc == 0) rc = launch_prepare((const void *)draft_plain_pick_kernel, 0);
    return rc ? rc : launch_prepare((const void *)draft_plain_publish_kernel, 0);
}
