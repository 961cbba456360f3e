/* The native engine, compiled: completes the prompts of a job, ids in and ids out, on one core.

The same function as `native.py` with `native_model.py` and `native_attention.py`, without a call into torch per
operation: the activations of a token stay in the caches of a core from one matrix to the next. The order of additions
of a row is the same beside any other rows, so that its bits depend on its own tokens only.

A batch of rows is read at a time: prefixes, marks and drafts. Rows that have ended then free their place in the cache
for the next rows. Once all places are taken, the unfinished rows are decoded together.

In the cache, keys are stored in blocks of W slots, where the W numbers of a component are adjacent; values are stored
slot by slot. Vectors are the vector types of GCC and clang, which compile them to the instructions of the processor.
Matrices are cut into panels of TILE columns, and the rows of a panel follow one another. Sizes of heads and layers are
padded with zeros (`native_compiled.py`).

`native_compiled.py` defines the numbers of `tokens.py`: CLASSES, LOCAL, DIGITS, EOS, PAD_ID, MAX_PLACE.

Legend: B rows, N tokens of a pass, P prefix tokens, L of them kept, T tokens of a branch, D hidden size, H heads,
K head size, I inner size, C classes. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define W 16
#define TILE_VECTORS 4
#elif defined(__AVX__)
#define W 8
#define TILE_VECTORS 2
#else
#define W 4
#define TILE_VECTORS 2
#endif
#define TILE_ROWS 6
#define TILE (W * TILE_VECTORS)
/* Rows of a panel that stay in the first-level cache. */
#define DEPTH 128
/* Tokens whose activations stay in the second-level cache from one matrix to the next. */
#define CHUNK 96
/* Maximum of rows that are decoded together, and of floats that their keys and values take. */
#define PLACES 48
#define CACHE_SIZE (1 << 24)

#define INLINE static inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * W), aligned(4), may_alias));

/* Matrices of a block; those after a norm include its weights. */
typedef struct {
    const float *query, *key_value, *out, *up, *down;
} Layer;

/* A model.
   hidden: D.
   width, inner, query_width, key_value_width: columns of panels.
   heads_width: H * K.
   first: [ids, query_width + key_value_width] queries, keys and values of the first layer, by id.
   rope: [places, 2, K] cosines, and sines with the sign that their sum needs.
   legal: [C, C] zero, or minus infinity where class j may not follow class i.
   mark_base: [LOCAL] the place before the first digit after a mark. */
typedef struct {
    int64_t num_layers, hidden, width, inner, heads, head_size, heads_width, query_width, key_value_width;
    float eps;
    const float *embed, *first, *rope, *head, *legal;
    const int64_t *mark_base;
    const Layer *layers;
} Model;

/* A branch of all rows.
   mark: [B] ids.
   draft: [B, drafted] the ids of the draft that are read.
   output: [B, length] ids.
   noise: [B, length, C], or null. */
typedef struct {
    int64_t length, drafted;
    const int64_t *mark, *draft;
    int64_t *output;
    const float *noise;
} Branch;

/* The arguments of a call.
   are_kept: whether `kept` is filled; if not, the call fills it.
   prefix: [B, P] ids.
   kept_ids: [B, L] ids.
   kept: [B, kept_size] keys and values of kept_ids, or null. */
typedef struct {
    int64_t rows, prefix_length, num_branches, kept_length, are_kept, drop_finished;
    float temperature;
    const int64_t *prefix, *kept_ids;
    float *kept;
    const Branch *branches;
} Call;

/* A token of a pass, at a slot of a place of the cache. It attends to the first `seen` slots of its place, and to the
   slots from `start` to its own.
   noise: [C] for the choice after it, or null. */
typedef struct {
    int64_t id, place, slot, seen, start;
    const float *noise;
} Token;

/* An unfinished completion.
   known: its new tokens so far. */
typedef struct {
    int64_t row, place, branch, known;
} Unit;

/* The working memory of a call.
   places: the places of the cache.
   blocks: blocks of W slots of a place.
   free: the first `num_free` are the free places.
   chosen: ids chosen after the tokens of a pass. */
typedef struct {
    const Model *model;
    const Call *call;
    int64_t places, blocks, place_size, num_free, num_units, tokens_read, is_broken;
    int64_t free[PLACES];
    Unit *units;
    Token *tokens;
    int64_t *chosen;
    float *cache, *x, *normed, *query, *key_value, *mixed, *inner, *scores;
} Job;

/* ---- vectors ---- */

#define AT(pointer) (*(Vector *)(pointer))
#define CONST_AT(pointer) (*(const Vector *)(pointer))

INLINE Vector all(float value) { return value - (Vector){0}; }

INLINE Vector max_each(Vector a, Vector b)
{
    Integers first = a > b;
    return (Vector)(((Integers)a & first) | ((Integers)b & ~first));
}

/* Swap the two components of each pair. */
INLINE Vector swap_pairs(Vector x)
{
#if W == 16
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif W == 8
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    return __builtin_shufflevector(x, x, 1, 0, 3, 2);
#endif
}

INLINE float sum_of(Vector x)
{
    float sum = 0;
    for (int i = 0; i < W; i++) sum += x[i];
    return sum;
}

INLINE float max_of(Vector x)
{
    float highest = x[0];
    for (int i = 1; i < W; i++) highest = x[i] > highest ? x[i] : highest;
    return highest;
}

/* Return powers of two for exponents of at most 0. The integer part becomes the exponent of a float. A polynomial of
   the rest has an error of one unit in the last place. NaN and exponents far below zero give almost zero. */
INLINE Vector power_of_two(Vector x)
{
    x = max_each(x, all(-126.0f));
    const Vector shifted = x + 12582912.0f, rest = x - (shifted - 12582912.0f);
    Vector y = all(1.535336188319500e-4f);
    y = y * rest + 1.339887440266574e-3f;
    y = y * rest + 9.618437357674640e-3f;
    y = y * rest + 5.550332471162809e-2f;
    y = y * rest + 2.402264791363012e-1f;
    y = y * rest + 6.931472028550421e-1f;
    y = y * rest + 1.0f;
    return (Vector)((Integers)y + ((Integers)shifted << 23));
}

/* ---- matrices ---- */

enum Then { STORE, ADD, SQUARE_RELU };

/* Multiply `rows` rows of x [N, depth] by a panel. Store the result in y, add it to y, or store its squared ReLU. */
INLINE void multiply_tile(
    const int rows, const enum Then then, const int continues, const float *x, int64_t x_stride, const float *panel,
    int64_t depth, float *y, int64_t y_stride)
{
    Vector sums[TILE_ROWS][TILE_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < TILE_VECTORS; v++)
            sums[r][v] = continues || then == ADD ? AT(y + r * y_stride + v * W) : all(0);
    for (int64_t k = 0; k < depth; k++) {
        Vector weights[TILE_VECTORS];
        for (int v = 0; v < TILE_VECTORS; v++) weights[v] = CONST_AT(panel + k * TILE + v * W);
        for (int r = 0; r < rows; r++) {
            const Vector factor = all(x[r * x_stride + k]);
            for (int v = 0; v < TILE_VECTORS; v++) sums[r][v] += factor * weights[v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < TILE_VECTORS; v++) {
            Vector sum = sums[r][v];
            if (then == SQUARE_RELU) {
                sum = max_each(sum, all(0));
                sum = sum * sum;
            }
            AT(y + r * y_stride + v * W) = sum;
        }
}

INLINE void multiply_rows(
    const enum Then then, const int continues, const float *x, int64_t x_stride, int64_t count, const float *panel,
    int64_t depth, float *y, int64_t y_stride)
{
    for (; count >= TILE_ROWS; count -= TILE_ROWS, x += TILE_ROWS * x_stride, y += TILE_ROWS * y_stride)
        multiply_tile(TILE_ROWS, then, continues, x, x_stride, panel, depth, y, y_stride);
    switch (count) {
    case 5: multiply_tile(5, then, continues, x, x_stride, panel, depth, y, y_stride); break;
    case 4: multiply_tile(4, then, continues, x, x_stride, panel, depth, y, y_stride); break;
    case 3: multiply_tile(3, then, continues, x, x_stride, panel, depth, y, y_stride); break;
    case 2: multiply_tile(2, then, continues, x, x_stride, panel, depth, y, y_stride); break;
    case 1: multiply_tile(1, then, continues, x, x_stride, panel, depth, y, y_stride); break;
    }
}

/* Multiply x [count, depth] by a matrix of `columns` in panels -> y [count, columns]. */
INLINE void multiply(
    const enum Then then, const float *x, int64_t x_stride, int64_t count, const float *matrix, int64_t depth,
    int64_t columns, float *y)
{
    for (int64_t column = 0; column < columns; column += TILE)
        for (int64_t k = 0; k < depth; k += DEPTH) {
            const int64_t part = depth - k < DEPTH ? depth - k : DEPTH;
            const float *panel = matrix + column * depth + k * TILE;
            /* The squared ReLU is applied after the last part of the sums. */
            const int is_last = k + part == depth;
            if (k == 0 && is_last)
                multiply_rows(then, 0, x + k, x_stride, count, panel, part, y + column, columns);
            else if (k == 0)
                multiply_rows(then == ADD ? ADD : STORE, 0, x + k, x_stride, count, panel, part, y + column, columns);
            else if (!is_last)
                multiply_rows(STORE, 1, x + k, x_stride, count, panel, part, y + column, columns);
            else
                multiply_rows(then, 1, x + k, x_stride, count, panel, part, y + column, columns);
        }
}

static __attribute__((noinline)) void product(
    const float *x, int64_t x_stride, int64_t count, const float *matrix, int64_t depth, int64_t columns, float *y)
{
    multiply(STORE, x, x_stride, count, matrix, depth, columns, y);
}

static __attribute__((noinline)) void add_product(
    const float *x, int64_t x_stride, int64_t count, const float *matrix, int64_t depth, int64_t columns, float *y)
{
    multiply(ADD, x, x_stride, count, matrix, depth, columns, y);
}

static __attribute__((noinline)) void squared_product(
    const float *x, int64_t x_stride, int64_t count, const float *matrix, int64_t depth, int64_t columns, float *y)
{
    multiply(SQUARE_RELU, x, x_stride, count, matrix, depth, columns, y);
}

/* Compute the RMS norm without its weights: x [count, width] -> y. */
static void norm(const Model *model, const float *x, int64_t count, float *y)
{
    const int64_t width = model->width;
    for (; count > 0; count--, x += width, y += width) {
        Vector squares = all(0);
        for (int64_t i = 0; i < width; i += W) squares += CONST_AT(x + i) * CONST_AT(x + i);
        const float scale = 1.0f / sqrtf(sum_of(squares) / (float)model->hidden + model->eps);
        for (int64_t i = 0; i < width; i += W) AT(y + i) = CONST_AT(x + i) * scale;
    }
}

/* ---- attention ---- */

static int64_t place_of(int64_t id) { return id / LOCAL; }

static int64_t class_of(int64_t id) { return id < LOCAL ? id + LOCAL : id % LOCAL; }

/* Rotate the pairs of all heads [H, K], in place, by the place of an id. */
static void rotate(const Model *model, float *heads, int64_t id)
{
    const int64_t size = model->head_size;
    const float *cosines = model->rope + place_of(id) * 2 * size, *sines = cosines + size;
    for (int64_t head = 0; head < model->heads; head++, heads += size)
        for (int64_t i = 0; i < size; i += W) {
            const Vector x = CONST_AT(heads + i);
            AT(heads + i) = x * CONST_AT(cosines + i) + swap_pairs(x) * CONST_AT(sines + i);
        }
}

/* Return the keys [blocks, K, W] of a head; its values [blocks * W, K] follow them. */
static float *keys_of(const Job *job, int64_t place, int64_t layer, int64_t head)
{
    const Model *model = job->model;
    const int64_t size = 2 * job->blocks * W * model->head_size;
    return job->cache + place * job->place_size + (layer * model->heads + head) * size;
}

/* Store keys and values [2, H, K] of a token in the cache. */
static void store_key_value(const Job *job, int64_t layer, const Token *token, const float *key_value)
{
    const Model *model = job->model;
    const int64_t size = model->head_size;
    for (int64_t head = 0; head < model->heads; head++) {
        float *keys = keys_of(job, token->place, layer, head), *values = keys + job->blocks * W * size;
        const float *key = key_value + head * size, *value = key + model->heads_width;
        float *column = keys + token->slot / W * size * W + token->slot % W;
        for (int64_t i = 0; i < size; i++) column[i * W] = key[i];
        memcpy(values + token->slot * size, value, sizeof(float) * (size_t)size);
    }
}

/* Compute scores of a query [K] with the keys of slots from start to stop, in whole blocks; return their count. */
INLINE int64_t score(const float *query, const float *keys, int64_t size, int64_t start, int64_t stop, float *scores)
{
    const int64_t first = start / W, last = (stop + W - 1) / W;
    int64_t block = first;
    for (; block + 4 <= last; block += 4) {
        const float *here = keys + block * size * W;
        Vector a = all(0), b = a, c = a, d = a;
        for (int64_t i = 0; i < size; i++) {
            const Vector factor = all(query[i]);
            a += factor * CONST_AT(here + i * W);
            b += factor * CONST_AT(here + (size + i) * W);
            c += factor * CONST_AT(here + (2 * size + i) * W);
            d += factor * CONST_AT(here + (3 * size + i) * W);
        }
        float *to = scores + (block - first) * W;
        AT(to) = a, AT(to + W) = b, AT(to + 2 * W) = c, AT(to + 3 * W) = d;
    }
    for (; block < last; block++) {
        Vector sum = all(0);
        for (int64_t i = 0; i < size; i++) sum += query[i] * CONST_AT(keys + (block * size + i) * W);
        AT(scores + (block - first) * W) = sum;
    }
    for (int64_t slot = first * W; slot < start; slot++) scores[slot - first * W] = -INFINITY;
    for (int64_t slot = stop; slot < last * W; slot++) scores[slot - first * W] = -INFINITY;
    return (last - first) * W;
}

/* Turn scores into weights that are not yet divided by their sum; return the sum. */
INLINE float softmax_weights(float *scores, int64_t count)
{
    Vector maxima = CONST_AT(scores);
    for (int64_t i = W; i < count; i += W) maxima = max_each(CONST_AT(scores + i), maxima);
    const float highest = max_of(maxima);
    Vector sum = all(0);
    for (int64_t i = 0; i < count; i += W) {
        const Vector weights = power_of_two(CONST_AT(scores + i) - highest);
        AT(scores + i) = weights;
        sum += weights;
    }
    return sum_of(sum);
}

/* Add the weighted values of `count` slots to W components of the sum. */
INLINE Vector add_values(const float *weights, const float *values, int64_t size, int64_t count, Vector sum)
{
    Vector b = all(0), c = b, d = b;
    int64_t slot = 0;
    for (; slot + 4 <= count; slot += 4, values += 4 * size) {
        sum += weights[slot] * CONST_AT(values);
        b += weights[slot + 1] * CONST_AT(values + size);
        c += weights[slot + 2] * CONST_AT(values + 2 * size);
        d += weights[slot + 3] * CONST_AT(values + 3 * size);
    }
    for (; slot < count; slot++, values += size) sum += weights[slot] * CONST_AT(values);
    return (sum + b) + (c + d);
}

/* Attend with a query [K] of one head -> out [K]. The slots of the first branch follow those of its prefix, so both
   are one range of slots. */
INLINE void attend(Job *job, const Token *token, const float *query, const float *keys, int64_t size, float *out)
{
    const float *values = keys + job->blocks * W * size;
    float *scores = job->scores;
    const int64_t seen = token->seen == token->start ? 0 : token->seen, start = seen ? token->start : 0;
    const int64_t stop = token->slot + 1;
    const int64_t before = seen ? score(query, keys, size, 0, seen, scores) : 0;
    const int64_t count = before + score(query, keys, size, start, stop, scores + before);
    const float sum = softmax_weights(scores, count);
    /* The highest score has the weight 1, so the sum is less only if scores are NaN. */
    if (!(sum >= 0.5f)) job->is_broken = 1;
    for (int64_t i = 0; i < size; i += W) {
        Vector mixed = add_values(scores, values + i, size, seen, all(0));
        mixed = add_values(scores + before + start % W, values + start * size + i, size, stop - start, mixed);
        AT(out + i) = mixed / sum;
    }
}

/* Attend with queries [count, query_width] of tokens -> mixed [count, H * K]. */
static void attend_all(Job *job, int64_t layer, const Token *tokens, int64_t count)
{
    const Model *model = job->model;
    const int64_t size = model->head_size;
    for (int64_t head = 0; head < model->heads; head++)
        for (int64_t n = 0; n < count; n++) {
            const float *query = job->query + n * model->query_width + head * size;
            float *out = job->mixed + n * model->heads_width + head * size;
            const float *keys = keys_of(job, tokens[n].place, layer, head);
            if (size == 16)
                attend(job, tokens + n, query, keys, 16, out);
            else
                attend(job, tokens + n, query, keys, size, out);
        }
}

/* ---- the model ---- */

/* Compute queries, keys and values of tokens, but no queries of the first `skip`. Keys and values go to the cache. */
static void query_keys_values(
    Job *job, int64_t layer, const Token *tokens, int64_t count, int64_t skip, const float *x)
{
    const Model *model = job->model;
    const Layer *weights = model->layers + layer;
    const int64_t width = model->width, query_width = model->query_width, key_value_width = model->key_value_width;
    if (layer == 0) {
        for (int64_t n = 0; n < count; n++) {
            const float *first = model->first + tokens[n].id * (query_width + key_value_width);
            if (n >= skip)
                memcpy(job->query + (n - skip) * query_width, first, sizeof(float) * (size_t)query_width);
            store_key_value(job, layer, tokens + n, first + query_width);
        }
        return;
    }
    norm(model, x, count, job->normed);
    product(job->normed, width, count, weights->key_value, model->hidden, key_value_width, job->key_value);
    product(job->normed + skip * width, width, count - skip, weights->query, model->hidden, query_width, job->query);
    for (int64_t n = 0; n < count; n++) {
        float *key_value = job->key_value + n * key_value_width;
        rotate(model, key_value, tokens[n].id);
        store_key_value(job, layer, tokens + n, key_value);
        if (n >= skip) rotate(model, job->query + (n - skip) * query_width, tokens[n].id);
    }
}

/* Run a block on x [count, width], in place; of the first `skip` tokens compute keys and values only. */
static void run_layer(Job *job, int64_t layer, const Token *tokens, int64_t count, int64_t skip, float *x)
{
    const Model *model = job->model;
    const Layer *weights = model->layers + layer;
    const int64_t width = model->width;
    query_keys_values(job, layer, tokens, count, skip, x);
    x += skip * width, count -= skip;
    attend_all(job, layer, tokens + skip, count);
    add_product(job->mixed, model->heads_width, count, weights->out, model->heads_width, width, x);
    norm(model, x, count, job->normed);
    squared_product(job->normed, width, count, weights->up, model->hidden, model->inner, job->inner);
    add_product(job->inner, model->inner, count, weights->down, model->inner, width, x);
}

/* Return the id of a class that follows an id. */
static int64_t next_id(const Model *model, int64_t id, int64_t class)
{
    if (class >= LOCAL) return class - LOCAL;
    int64_t place = (id < LOCAL ? model->mark_base[id] : place_of(id)) + (class < DIGITS);
    if (place > MAX_PLACE) place = MAX_PLACE;
    return class + LOCAL * place;
}

/* Choose the ids that follow tokens, from their hidden states x [count, width]. */
static void choose(Job *job, const Token *tokens, int64_t count, const float *x, int64_t *chosen)
{
    const Model *model = job->model;
    const int64_t columns = (CLASSES + TILE - 1) / TILE * TILE;
    norm(model, x, count, job->normed);
    product(job->normed, model->width, count, model->head, model->hidden, columns, job->inner);
    for (int64_t n = 0; n < count; n++) {
        const float *logits = job->inner + n * columns, *legal = model->legal + class_of(tokens[n].id) * CLASSES;
        int64_t best = -1;
        float highest = -INFINITY;
        for (int64_t class = 0; class < CLASSES; class++) {
            float logit = logits[class] + legal[class];
            if (tokens[n].noise) logit = logit / job->call->temperature + tokens[n].noise[class];
            if (logit > highest) highest = logit, best = class;
        }
        if (best < 0) job->is_broken = 1;
        chosen[n] = next_id(model, tokens[n].id, best < 0 ? CLASSES - 1 : best);
    }
}

/* Run `count` tokens through the model, and choose an id after each of them except the first `skip`. A token may attend
   to earlier tokens of the pass. */
static void pass(Job *job, int64_t count, int64_t skip)
{
    const Model *model = job->model;
    const int64_t width = model->width, last = model->num_layers - 1;
    for (int64_t n = 0; n < count; n++)
        memcpy(job->x + n * width, model->embed + class_of(job->tokens[n].id) * width, sizeof(float) * (size_t)width);
    for (int64_t layer = 0; layer <= last; layer++)
        for (int64_t start = 0; start < count; start += CHUNK) {
            const int64_t chunk = count - start < CHUNK ? count - start : CHUNK;
            int64_t skipped = layer == last && skip > start ? skip - start : 0;
            if (skipped > chunk) skipped = chunk;
            run_layer(job, layer, job->tokens + start, chunk, skipped, job->x + start * width);
        }
    for (int64_t start = skip; start < count; start += CHUNK) {
        const int64_t chunk = count - start < CHUNK ? count - start : CHUNK;
        choose(job, job->tokens + start, chunk, job->x + start * width, job->chosen + start - skip);
    }
    job->tokens_read += count;
}

/* ---- completions ---- */

static int64_t start_of(const Call *call, int64_t branch)
{
    int64_t slot = call->prefix_length;
    for (int64_t i = 0; i < branch; i++) slot += 1 + call->branches[i].length;
    return slot;
}

static int is_unfinished(const Branch *branch, int64_t row, int64_t known)
{
    const int64_t last = branch->output[row * branch->length + known - 1];
    const int is_end = last == PAD_ID || (last >= LOCAL && last % LOCAL == EOS);
    return !is_end && known < branch->length;
}

/* Copy the first `count` slots of all heads from a place of `from_blocks` blocks to one of `to_blocks`. */
static void copy_slots(
    const Model *model, const float *from, int64_t from_blocks, float *to, int64_t to_blocks, int64_t count)
{
    const int64_t size = model->head_size, keys = (count + W - 1) / W * W * size;
    for (int64_t n = 0; n < model->num_layers * model->heads; n++) {
        memcpy(to, from, sizeof(float) * (size_t)keys);
        memcpy(to + to_blocks * W * size, from + from_blocks * W * size, sizeof(float) * (size_t)(count * size));
        from += 2 * from_blocks * W * size, to += 2 * to_blocks * W * size;
    }
}

/* Return the number of kept tokens of a row's prefix. Its last token is always read, so that a pass is never empty. */
static int64_t count_kept(const Call *call, int64_t row)
{
    if (!call->kept || !call->are_kept) return 0;
    const int64_t *kept = call->kept_ids + row * call->kept_length, *prefix = call->prefix + row * call->prefix_length;
    int64_t count = 0;
    while (count < call->kept_length && count < call->prefix_length - 1 && kept[count] == prefix[count]) count++;
    return count;
}

/* Lay out the tokens of `rows` rows from `row` on, prefixes first; return the number of prefix tokens. */
static int64_t lay_out(Job *job, int64_t row, int64_t rows, int64_t *count)
{
    const Call *call = job->call;
    const int64_t length = call->prefix_length;
    Token *token = job->tokens;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t slot = count_kept(call, row + i); slot < length; slot++)
            *token++ = (Token){call->prefix[(row + i) * length + slot], job->free[job->num_free + i], slot, 0, 0, 0};
    const int64_t skip = token - job->tokens;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t b = 0; b < call->num_branches; b++) {
            const Branch *branch = call->branches + b;
            const int64_t start = start_of(call, b), at = row + i;
            for (int64_t step = 0; step <= branch->drafted; step++)
                *token++ = (Token){
                    step ? branch->draft[at * branch->drafted + step - 1] : branch->mark[at],
                    job->free[job->num_free + i], start + step, length, start,
                    branch->noise ? branch->noise + (at * branch->length + step) * CLASSES : 0};
        }
    *count = token - job->tokens;
    return skip;
}

/* Accept the choices after a mark and its draft while the model chose every drafted token before them; return their
   count. */
static int64_t accept(const Branch *branch, int64_t row, const int64_t *chosen)
{
    int64_t *output = branch->output + row * branch->length, known = 0;
    const int64_t *draft = branch->draft + row * branch->drafted;
    do
        output[known] = chosen[known], known++;
    while (known <= branch->drafted && chosen[known - 1] == draft[known - 1]);
    for (int64_t step = known; step < branch->length; step++) output[step] = PAD_ID;
    return known;
}

/* Read `rows` rows and choose ids after marks and drafts; unfinished completions become units. */
static void read_rows(Job *job, int64_t row, int64_t rows)
{
    const Model *model = job->model;
    const Call *call = job->call;
    const int64_t kept_blocks = (call->kept_length + W - 1) / W;
    const int64_t kept_size = model->num_layers * 2 * kept_blocks * W * model->heads_width;
    int64_t places[PLACES], count;
    job->num_free -= rows;
    memcpy(places, job->free + job->num_free, sizeof(int64_t) * (size_t)rows);
    for (int64_t i = 0; i < rows; i++)
        if (call->kept && call->are_kept)
            copy_slots(
                model, call->kept + (row + i) * kept_size, kept_blocks, job->cache + places[i] * job->place_size,
                job->blocks, count_kept(call, row + i));
    const int64_t skip = lay_out(job, row, rows, &count);
    pass(job, count, skip);
    const int64_t *chosen = job->chosen;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t before = job->num_units;
        if (call->kept && !call->are_kept)
            copy_slots(
                model, job->cache + places[i] * job->place_size, job->blocks, call->kept + (row + i) * kept_size,
                kept_blocks, call->kept_length);
        for (int64_t b = 0; b < call->num_branches; b++) {
            const Branch *branch = call->branches + b;
            const int64_t known = accept(branch, row + i, chosen);
            chosen += 1 + branch->drafted;
            if (is_unfinished(branch, row + i, known))
                job->units[job->num_units++] = (Unit){row + i, places[i], b, known};
        }
        if (job->num_units == before) job->free[job->num_free++] = places[i];
    }
}

/* Return the last known token of a unit, which is not read yet. */
static Token last_token(const Job *job, const Unit *unit)
{
    const Call *call = job->call;
    const Branch *branch = call->branches + unit->branch;
    const int64_t start = start_of(call, unit->branch), at = unit->row * branch->length + unit->known;
    return (Token){
        branch->output[at - 1], unit->place, start + unit->known, call->prefix_length, start,
        branch->noise ? branch->noise + at * CLASSES : 0};
}

/* Complete all units token by token; then all places are free. */
static void decode(Job *job)
{
    const Call *call = job->call;
    int64_t unfinished = job->num_units;
    while (unfinished > 0) {
        int64_t left = 0;
        for (int64_t i = 0; i < job->num_units; i++) {
            Unit unit = job->units[i];
            /* Finished units that wait for the others repeat their last step. */
            if (!is_unfinished(call->branches + unit.branch, unit.row, unit.known)) unit.known--;
            job->tokens[i] = last_token(job, &unit);
        }
        pass(job, job->num_units, 0);
        unfinished = 0;
        for (int64_t i = 0; i < job->num_units; i++) {
            Unit *unit = job->units + i;
            const Branch *branch = call->branches + unit->branch;
            if (is_unfinished(branch, unit->row, unit->known))
                branch->output[unit->row * branch->length + unit->known++] = job->chosen[i];
            const int continues = is_unfinished(branch, unit->row, unit->known);
            unfinished += continues;
            if (continues || !call->drop_finished) job->units[left++] = *unit;
        }
        job->num_units = left;
    }
    job->num_units = 0;
    for (job->num_free = 0; job->num_free < job->places; job->num_free++) job->free[job->num_free] = job->num_free;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Return the number of tokens of a row that are read at once. */
static int64_t tokens_per_row(const Call *call)
{
    int64_t count = call->prefix_length;
    for (int64_t b = 0; b < call->num_branches; b++) count += 1 + call->branches[b].drafted;
    return count;
}

/* Return the number of rows that are read at once. */
static int64_t rows_per_pass(const Job *job) { return clamp(CHUNK / tokens_per_row(job->call), 1, job->places); }

/* Lay a job out in memory, unless that is null; return the number of bytes that it takes. */
static int64_t lay_out_job(Job *job, const Model *model, const Call *call, char *memory)
{
    const int64_t blocks = (start_of(call, call->num_branches) + W - 1) / W;
    const int64_t place_size = model->num_layers * 2 * blocks * W * model->heads_width;
    const int64_t places = clamp(CACHE_SIZE / place_size, 1, call->rows < PLACES ? call->rows : PLACES);
    *job = (Job){.model = model, .call = call, .places = places, .blocks = blocks, .place_size = place_size};
    const int64_t read = tokens_per_row(call) * rows_per_pass(job), units = places * call->num_branches;
    const int64_t tokens = read > units ? read : units, classes = (CLASSES + TILE - 1) / TILE * TILE;
    const int64_t inner = model->inner > classes ? model->inner : classes;
    int64_t size = 0;
#define LAY(pointer, count)                                                                                            \
    (pointer) = memory ? (void *)(memory + size) : 0, size += ((int64_t)sizeof(*(pointer)) * (count) + 63) / 64 * 64
    LAY(job->cache, places * place_size);
    LAY(job->x, tokens * model->width);
    LAY(job->normed, CHUNK * model->width);
    LAY(job->query, CHUNK * model->query_width);
    LAY(job->key_value, CHUNK * model->key_value_width);
    LAY(job->mixed, CHUNK * model->heads_width);
    LAY(job->inner, CHUNK * inner);
    LAY(job->scores, (blocks + 2) * W);
    LAY(job->units, units);
    LAY(job->tokens, tokens);
    LAY(job->chosen, tokens);
#undef LAY
    return size;
}

/* ---- the interface for Python ---- */

int64_t vector_width(void) { return W; }

int64_t tile_width(void) { return TILE; }

/* Return the bytes of memory that a call needs. */
int64_t memory_size(const Model *model, const Call *call)
{
    Job job;
    return lay_out_job(&job, model, call, 0);
}

/* Complete all branches of all rows; return the number of tokens read, or -1 if scores or logits are not finite.
   memory: `memory_size` bytes with any contents. */
int64_t complete(const Model *model, const Call *call, char *memory)
{
    Job job;
    lay_out_job(&job, model, call, memory);
    decode(&job);
    const int64_t batch = rows_per_pass(&job);
    for (int64_t row = 0; row < call->rows; row += batch) {
        const int64_t rows = call->rows - row < batch ? call->rows - row : batch;
        if (job.num_free < rows) decode(&job);
        read_rows(&job, row, rows);
    }
    decode(&job);
    return job.is_broken ? -1 : job.tokens_read;
}
