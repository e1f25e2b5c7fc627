/* bench/step_bench.c - how near the CPU forward pass comes to the memory: ms per step, bytes per step, share of the floor.
 *
 *   build/bench/step_bench --model DIR | --random 1b [--threads N] [--kernels portable|avx2|avx512] [--context N] [--quick] [--cpu-time]
 *
 * The floor of a decode step is the time to read every weight matrix once at the read bandwidth that this same
 * machine shows in a plain loop over the same bytes, with as many threads. The random checkpoint has the architecture of gemma 4
 * with about a billion parameters and is made in memory. Each figure is the best of several runs: other work on
 * the machine only ever makes a run slower. On a machine that is busy with other things --threads 1 --cpu-time counts the
 * thread's own CPU time instead of the clock on the wall. */
#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "model/forward.h"
#include "tests/synthetic.h"
#include <getopt.h>
#include <time.h>

#define BENCH_ROWS_MAX 256
#define BENCH_SEQS 16
#define BENCH_RUNS 5
#define BENCH_SECONDS_PER_FIGURE 1.5

static const char random_1b[] =
    "{\"model_type\":\"gemma4_unified_text\",\"vocab_size\":262144,\"hidden_size\":1536,\"intermediate_size\":6144,\"num_hidden_layers\":12,"
    "\"num_attention_heads\":16,\"num_key_value_heads\":8,\"head_dim\":256,\"global_head_dim\":512,\"num_global_key_value_heads\":1,"
    "\"attention_k_eq_v\":true,\"sliding_window\":1024,\"final_logit_softcapping\":30.0,\"eos_token_id\":1}";

struct bench {
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct model_weights weights;
    struct kv_geometry geo;
    struct forward *forward;
    struct forward_seq seqs[BENCH_SEQS];
    float *logits;
    double bytes_per_second;          /* read bandwidth */
    uint32_t context, runs;
};

static clockid_t bench_clock = CLOCK_MONOTONIC;

static double now_seconds(void)
{
    struct timespec t;

    clock_gettime(bench_clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "step_bench: %s: %s\n", what, why);
    exit(1);
}

/* ---- memory ---- */

typedef uint64_t bench_words __attribute__((vector_size(64)));
struct read_job { const uint8_t *bytes; uint64_t byte_count, piece; uint64_t sums[4096]; };

/* Several streams at once, asked for ahead of time, as the kernels read their rows: one plain loop reached only 60 % of
 * what the kernels themselves draw from memory. */
#define READ_STREAMS 8u
#define READ_ROW_BYTES 3072u /* no power of two: the streams must not meet in the same cache sets */

static void read_task(void *context, uint32_t task, uint32_t thread)
{
    struct read_job *job = context;
    const uint64_t from = task * job->piece, to = from + job->piece < job->byte_count ? from + job->piece : job->byte_count;
    bench_words sum = { 0 }, word;

    (void)thread;
    for (uint64_t rows = from; rows + READ_STREAMS * READ_ROW_BYTES <= to; rows += READ_STREAMS * READ_ROW_BYTES)
        for (uint64_t i = 0; i < READ_ROW_BYTES; i += 64)
            for (uint64_t at = 0; at < READ_STREAMS; at++) {
                const uint8_t *line = job->bytes + rows + at * READ_ROW_BYTES + i;
                __builtin_prefetch(line + READ_STREAMS * READ_ROW_BYTES, 0, 2);
                memcpy(&word, line, 64);
                sum += word;
            }
    job->sums[task % 4096] = sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

/* Best rate of reading the biggest checkpoint file, or at least 256 MiB so that no cache holds it. */
static double measure_bandwidth(const struct bench *b, uint32_t threads)
{
    static struct read_job job;
    uint8_t *own = NULL;
    struct pool *pool;
    double best = 0;

    for (uint32_t i = 0; i < b->files.count; i++)
        if (b->files.file[i].byte_count > job.byte_count) job.bytes = b->files.file[i].bytes, job.byte_count = b->files.file[i].byte_count;
    if (job.byte_count < 256u << 20) {
        job.byte_count = 256u << 20;
        if (!(own = malloc(job.byte_count))) die("bandwidth", "no memory");
        memset(own, 1, job.byte_count);
        job.bytes = own;
    }
    job.piece = 4u << 20;
    if (pool_open(&pool, threads, 0) != 0) die("bandwidth", "no threads");
    for (uint32_t i = 0; i < b->runs + 1; i++) {
        const double start = now_seconds();
        double rate;

        pool_run(pool, read_task, &job, (uint32_t)((job.byte_count + job.piece - 1) / job.piece));
        rate = (double)job.byte_count / (now_seconds() - start);
        best = i > 0 && rate > best ? rate : best;    /* the first faults the pages in */
    }
    pool_close(pool);
    free(own);
    return best;
}

/* ---- steps ---- */

/* Best seconds of one call of these rows. */
static double time_rows(struct bench *b, const struct forward_row *rows, uint32_t count)
{
    double best = 1e9, spent = 0;

    for (uint32_t i = 0; i < b->runs * 20 && (i < b->runs || spent < BENCH_SECONDS_PER_FIGURE); i++) {
        const double start = now_seconds();
        double took;

        if (forward_run(b->forward, rows, count, b->seqs, BENCH_SEQS, b->logits, NULL) != 0) die("forward_run", "refused");
        took = now_seconds() - start;
        best = took < best ? took : best;
        spent += took;
    }
    return best;
}

/* `count` sequences decode one token each at the context's end; or one sequence verifies a block of them. */
static void bench_decode(struct bench *b, uint32_t count, bool block)
{
    struct forward_row rows[BENCH_SEQS];
    const double bytes = (double)b->weights.step_bytes, floor = bytes / b->bytes_per_second;
    double took;

    for (uint32_t i = 0; i < count; i++)
        rows[i] = (struct forward_row){ 5 + i, block ? b->context - count + i : b->context - 1, block ? 0 : i, 1, 0 };
    took = time_rows(b, rows, count);
    printf("| %s %2u rows | %9.2f | %9.1f | %7.3f | %6.2f | %5.0f%% |\n", block ? "verify" : "decode", count, took * 1e3, count / took,
           bytes * 1e-9, bytes / took * 1e-9, 100 * floor / took);
}

static void bench_prefill(struct bench *b, uint32_t chunk)
{
    static struct forward_row rows[BENCH_ROWS_MAX];
    const double bytes = (double)b->weights.step_bytes, macs = bytes / (b->weights.dtype == DTYPE_BF16 ? 2 : 4);
    double took;

    for (uint32_t i = 0; i < chunk; i++) rows[i] = (struct forward_row){ i % b->config.vocab, i, 1, i == chunk - 1, 0 };
    took = time_rows(b, rows, chunk);
    printf("| prefill %3u   | %9.2f | %9.1f | %7.3f | %6.2f | %5.1f GFLOP/s |\n", chunk, took * 1e3, chunk / took, bytes * 1e-9,
           bytes / took * 1e-9, 2 * (macs - (double)b->config.vocab * b->config.hidden) * chunk / took * 1e-9);
}

/* ---- set-up ---- */

static void open_model(struct bench *b, const char *dir, const char *random)
{
    const struct synthetic_options options = { .prefix = "model." };
    struct model_error err;

    if (dir) {
        if (model_files_open_dir(&b->files, dir, &err) != 0) die(dir, err.text);
    } else {
        if (strcmp(random, "1b") != 0) die(random, "the only random checkpoint is 1b");
        synthetic_checkpoint(&b->files, random_1b, &options);
    }
    if (model_load(&b->config, &b->generation, &b->weights, &b->files, &err) != 0) die("checkpoint", err.text);
}

static void open_forward(struct bench *b, uint32_t threads, uint32_t kernels)
{
    const struct forward_options options = { .threads = threads, .rows_max = BENCH_ROWS_MAX, .kernels = kernels };
    uint32_t *pages, full, sliding;
    void *arena;

    if (kv_geometry_init(&b->geo, &b->config, KV_BF16, b->context, BENCH_ROWS_MAX, 0, 0) != 0) die("--context", "out of range");
    full = b->geo.full_pages_per_seq, sliding = b->geo.sliding_pages_per_seq;
    if (kv_geometry_init(&b->geo, &b->config, KV_BF16, b->context, BENCH_ROWS_MAX, full * BENCH_SEQS, sliding * BENCH_SEQS) != 0) die("cache", "too large");
    arena = mmap(NULL, b->geo.arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pages = malloc(sizeof(*pages) * BENCH_SEQS * (full + sliding));
    b->logits = malloc((uint64_t)BENCH_ROWS_MAX * b->config.vocab * sizeof(float));
    if (arena == MAP_FAILED || !pages || !b->logits) die("cache", "no memory");
    for (uint32_t s = 0; s < BENCH_SEQS; s++) {
        uint32_t *own = pages + (uint64_t)s * (full + sliding);

        for (uint32_t i = 0; i < full; i++) own[i] = s * full + i;
        for (uint32_t i = 0; i < sliding; i++) own[full + i] = s * sliding + i;
        b->seqs[s] = (struct forward_seq){ own, own + full, full, sliding };
    }
    if (forward_open(&b->forward, &b->weights, &b->geo, arena, &options) != 0) die("forward_open", "refused (does this CPU have those instructions?)");
}

/* Decoding reads the cache: every sequence is filled, cheaply, with one chunk repeated. */
static void fill_cache(struct bench *b)
{
    static struct forward_row rows[BENCH_ROWS_MAX];
    const uint32_t most = b->context < BENCH_ROWS_MAX ? b->context : BENCH_ROWS_MAX;

    for (uint32_t s = 0; s < BENCH_SEQS; s++)
        for (uint32_t p = 0; p < b->context; p += most) {
            const uint32_t n = b->context - p < most ? b->context - p : most;

            for (uint32_t i = 0; i < n; i++) rows[i] = (struct forward_row){ (p + i) * 7 % b->config.vocab, p + i, s, 0, 0 };
            if (forward_run(b->forward, rows, n, b->seqs, BENCH_SEQS, NULL, NULL) != 0) die("prefill", "refused");
        }
}

static uint32_t kernels_named(const char *name)
{
    static const char *const names[] = { "best", "portable", "avx2", "avx512" };

    for (uint32_t i = 0; i < 4; i++)
        if (strcmp(names[i], name) == 0) return i;
    die(name, "unknown kernels");
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = { { "model", 1, NULL, 'm' }, { "random", 1, NULL, 'r' }, { "threads", 1, NULL, 't' },
        { "kernels", 1, NULL, 'k' }, { "context", 1, NULL, 'c' }, { "quick", 0, NULL, 'q' },
        { "cpu-time", 0, NULL, 'u' }, { 0 } };
    static struct bench b = { .context = 128, .runs = BENCH_RUNS };
    const char *dir = NULL, *random = NULL;
    uint32_t threads = 0, kernels = 0;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'm') dir = optarg;
        else if (option == 'r') random = optarg;
        else if (option == 't') threads = (uint32_t)atoi(optarg);
        else if (option == 'k') kernels = kernels_named(optarg);
        else if (option == 'c') b.context = (uint32_t)atoi(optarg);
        else if (option == 'q') b.runs = 1;
        else if (option == 'u') bench_clock = CLOCK_THREAD_CPUTIME_ID;
        else return 100;
    }
    if ((dir != NULL) == (random != NULL)) die("usage", "--model DIR or --random 1b, [--threads N] [--kernels NAME] [--context N] [--quick] [--cpu-time]");
    if (bench_clock != CLOCK_MONOTONIC && threads != 1) die("--cpu-time", "needs --threads 1");
    open_model(&b, dir, random);
    open_forward(&b, threads, kernels);
    b.bytes_per_second = measure_bandwidth(&b, forward_threads(b.forward));
    printf("%s: %.1f M parameters in matrices, %u layers, hidden %u, vocabulary %u, %s\n", dir ? dir : "random 1b",
           (double)b.weights.step_bytes * 1e-6 / (b.weights.dtype == DTYPE_BF16 ? 2 : 4), b.config.layer_count, b.config.hidden, b.config.vocab, tensor_dtype_name(b.weights.dtype));
    printf("%u threads, kernels %s, context %u, memory read %.2f GB/s; floor of a step %.2f ms%s\n\n", forward_threads(b.forward),
           forward_kernels_name(b.forward), b.context, b.bytes_per_second * 1e-9, (double)b.weights.step_bytes / b.bytes_per_second * 1e3,
           bench_clock == CLOCK_MONOTONIC ? "" : "; CPU time of the thread, not wall time");
    printf("|               | ms        | tokens/s  | GB      | GB/s   | of floor |\n|---|---|---|---|---|---|\n");
    fill_cache(&b);
    for (uint32_t rows = 1; rows <= BENCH_SEQS; rows *= 2) bench_decode(&b, rows, false);
    bench_decode(&b, 8, true);
    for (uint32_t chunk = 16; chunk <= BENCH_ROWS_MAX && chunk <= b.context; chunk *= 4) bench_prefill(&b, chunk);
    if (b.context >= 128) bench_prefill(&b, 128);
    forward_close(b.forward);
    model_weights_free(&b.weights);
    model_files_close(&b.files);
    return 0;
}
